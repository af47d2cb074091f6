"""How one pass runs: the update text and its three launchers.

Every launcher module (:mod:`reference <fastadam.kernels.reference>`, :mod:`cpu <fastadam.kernels.cpu>`,
:mod:`cuda <fastadam.kernels.cuda>`) has a function ``launcher(update, size, dtype)``, which returns a callable

    launch(p, g, m, v, scalars) -> None

over flat buffers of ``size`` elements of ``dtype``, in place in p, m and v. ``scalars`` are the float64 values of
:mod:`fold <fastadam.kernels.fold>`, in the order of ``update.scalars``; each is rounded once, to the dtype of p.
Inputs are trusted: all checks live in :mod:`fastadam`.
"""
