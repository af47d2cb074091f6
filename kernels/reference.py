"""The in-place NumPy reference: the update text run on whole arrays. What every other kernel must equal bit for bit."""

from functools import cache

import numpy as np


@cache
def launcher(update):
    def launch(p, g, m, v, scalars):
        with np.errstate(all="ignore"):
            update.element(p, g, m, v, *map(p.dtype.type, scalars))

    return launch
