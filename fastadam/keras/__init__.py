"""Keras' Adam, AdamW and Lion as one fused pass over the variables of a model, on Keras' torch backend.

    model.compile(optimizer=fastadam.keras.AdamW(3e-4), loss="mse")

is the only line of a training that changes. This package needs Keras 3.8 and torch 2.7 or newer, and
KERAS_BACKEND=torch; `import fastadam` alone imports neither. docs/keras.md says what is in the pass.
"""

from fastadam.keras.family import Adam, AdamW, Lion

__all__ = ["Adam", "AdamW", "Lion"]
