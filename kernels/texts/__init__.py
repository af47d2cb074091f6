"""What is computed: the texts of the element, of the fold, of the casts, in the common subset of Python and C."""
