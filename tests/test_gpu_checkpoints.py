"""Checkpoints from the GPU to the CPU and back."""

import numpy as np
import pytest
from checkpointing import arrays

import fastadam
from fastadam.memory.arrays import as_bits, on_host

pytestmark = pytest.mark.gpu
SHAPES = {"w": (65, 70), "b": (), "large": (3, 300_000)}


def stored(opt):
    """Name -> key -> the bytes of all that is kept of a parameter."""
    state = opt.state_dict()["state"]
    kept = {
        name: {key: on_host(value).tobytes() for key, value in entry.items() if hasattr(value, "shape")}
        for name, entry in state.items()
    }
    return {name: {**entry, "param": on_host(as_bits(opt.params[name])).tobytes()} for name, entry in kept.items()}


@pytest.mark.parametrize(
    "options", [{}, {"moment_dtype": "bfloat16"}, {"moment_dtype": "float8", "ema_decay": 0.5}], ids=str
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_run_goes_to_the_cpu_and_back(options, order, tmp_path):
    cupy = pytest.importorskip("cupy")
    path = tmp_path / "run.safetensors"

    def built(seed, move):
        made = arrays(seed, shapes=SHAPES, order=order)
        return fastadam.AdamW({name: move(array) for name, array in made.items()}, lr=0.1, **options)

    there, here, back = built(1, cupy.asarray), built(2, np.asarray), built(3, cupy.asarray)
    for seed in (4, 5):
        there.step({name: cupy.asarray(array) for name, array in arrays(seed, shapes=SHAPES).items()})
    there.save(path)
    here.load(path)
    assert stored(here) == stored(there)
    here.save(path)
    back.load(path)
    assert stored(back) == stored(there)
    for opt in (there, back):
        opt.step({name: cupy.asarray(array) for name, array in arrays(6, shapes=SHAPES).items()})
    assert stored(back) == stored(there)
