"""How one pass runs: the texts, what they are joined to, and the modules that launch them.

:mod:`update <fastadam.kernels.update>` has the stages of the element text, :mod:`fold <fastadam.kernels.fold>` those of
the quantities that are the same for all elements of a group, :mod:`norm <fastadam.kernels.norm>` the reduction,
:mod:`catch_up <fastadam.kernels.catch_up>` what a row of a table has missed, :mod:`casts <fastadam.kernels.casts>` what
makes 16 and 8 bits of a float32 and back, :mod:`storage <fastadam.kernels.storage>` which of these each buffer takes;
:mod:`text <fastadam.kernels.text>` joins stages to texts.

The launcher modules :mod:`reference <fastadam.kernels.reference>`, :mod:`cpu <fastadam.kernels.cpu>` and
:mod:`cuda <fastadam.kernels.cuda>` have ``launcher(update, dtype, size)``, which returns a callable

    launch(flats, addresses, blocks, rows, hyper, carried, table, grad_scale) -> None

over ``flats``, the flat arrays of ``update.flats``, in place; ``dtype`` is that of the arithmetic. Each of ``rows`` is
folded first: row by row, ``hyper`` has hyperparameters in the order of ``fold.HYPER``, ``carried`` what is carried from
step to step, and ``table`` gets the scalars, rounded to ``dtype``. ``blocks`` are the pieces (start, stop, row,
parameter, offset) that are stepped: with the scalars of ``row``, and with the gradient that begins ``offset`` elements
after ``addresses[parameter]`` (for the reference: in the array ``addresses[parameter]``). Inputs are trusted: all
checks live in :mod:`fastadam`.
"""
