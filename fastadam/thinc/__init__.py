"""Thinc's Adam, and so spaCy's, as one fused pass over each parameter, in place.

    [training.optimizer]
    @optimizers = "fastadam.Adam.v1"

is all that changes in a spaCy config that has `Adam.v1`. This package needs Thinc, 8.3 or newer; `import fastadam`
alone does not.
"""

from fastadam.thinc.optimizer import Adam

__all__ = ["Adam"]
