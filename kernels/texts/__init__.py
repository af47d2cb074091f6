"""What is computed: the texts of the element, of the fold, of the casts, in the common subset of Python and C.

`text` joins stages to texts. `shared` has the stages that all members of the family share, and each other member of
the family is a file with its own stages and one declaration; `members` lists them. `update` joins a member's stages and
the shared ones to an update. `clip` has what follows from the norm, `catch_up` what a row has missed, `casts` and
`formats` how values are stored.
"""
