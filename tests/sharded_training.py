"""A training whose gradients add up exactly, in one process or on a rank of several; a program for ranks of engines."""

import os
import sys
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np

import fastadam

SHAPES = {"weights": (300, 211), "bias": (), "block": (8_192,), "table": (4_001, 5), "small": (5,), "empty": (0, 3)}
CASES = {
    "float32": {},
    "float64": {"dtype": np.float64, "amsgrad": True},
    "clipping": {"max_grad_norm": 0.5},
    "clipping of each": {"max_grad_norm_per_param": 0.5},
    "clipping of each in buckets": {"max_grad_norm_per_param": 0.5, "bucket_bytes": 1, "moment_dtype": "float8"},
    "average": {"ema_decay": 0.9, "weight_decay": 0.1},
    "bfloat16": {"dtype": ml_dtypes.bfloat16, "max_grad_norm": 0.5, "seed": 3},
    "masters": {"dtype": ml_dtypes.bfloat16, "master_weights": True, "ema_decay": 0.9, "grad_dtype": "float32"},
    "8-bit": {"moment_dtype": "float8", "max_grad_norm": 1.0},
    "8-bit of bfloat16": {"dtype": ml_dtypes.bfloat16, "moment_dtype": "float8", "nonfinite": "skip"},
    "buckets": {"bucket_bytes": 100_000, "zero_grad": True},
    "buckets with a norm": {"bucket_bytes": 1, "max_grad_norm": 0.5, "moment_dtype": "float8"},
}


def model(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {name: np.array(rng.standard_normal(shape).astype(dtype)) for name, shape in SHAPES.items()}


def gradients(step, rank, dtype=np.float32):
    """Those of a rank; the sum of those of up to 8 ranks is exact in every dtype, in every order."""
    rng = np.random.default_rng((step, rank))
    drawn = {name: np.array((rng.integers(-8, 9, shape) / 64).astype(dtype)) for name, shape in SHAPES.items()}
    # One parameter is not stepped now and then.
    return {**drawn, "table": None if step % 3 == 2 else drawn["table"]}


def summed(step, ranks, dtype=np.float32):
    found = [gradients(step, rank, dtype) for rank in range(ranks)]
    totals = {
        name: None if found[0][name] is None else sum(each[name].astype(np.float64) for each in found)
        for name in SHAPES
    }
    return {name: None if total is None else np.array(total).astype(dtype) for name, total in totals.items()}


def optimizer(group, dtype=np.float32, grad_dtype=None, **options):
    """A new optimizer of the model, for one process without a group."""
    if group is None:
        options.pop("bucket_bytes", None)
    held = {"flat": True} if group is None else {"shard": group}
    params = model(dtype)
    kept = {} if grad_dtype is None else {"grad_dtype": grad_dtype}
    return fastadam.AdamW(params, lr=0.01, **held, **kept, **options)


def take_steps(opt, steps, rank, ranks, dtype=np.float32, grad_dtype=None, **_):
    """Steps of an optimizer: those of a rank, or with `rank` None those of all ranks in one process."""
    dtype = dtype if grad_dtype is None else np.dtype(grad_dtype)
    for step in steps:
        found = summed(step, ranks, dtype) if rank is None else gradients(step, rank, dtype)
        opt.step(found, grad_scale=1.0 / ranks)


def result(opt):
    """The bits of all that must be the same: parameters as bytes, and numbers."""
    bits = {name: np.frombuffer(np.array(value).tobytes(), np.uint8) for name, value in opt.params.items()}
    return {**bits, "norm": np.array(opt.grad_norm or 0.0), "skipped": np.array(opt.skipped_steps)}


def train(case, group, ranks, steps=range(4)):
    """The result of a case, on a rank of a `group`, or for all `ranks` in one process without it."""
    opt = optimizer(group, **CASES[case])
    take_steps(opt, steps, None if group is None else group_rank(group), ranks, **CASES[case])
    return result(opt)


def group_rank(group):
    return group.rank() if callable(getattr(group, "rank", None)) else group.rank


def gloo(rank, size, folder, seconds=60.0):
    import datetime

    import torch.distributed as dist

    place = f"file://{Path(folder).resolve()}/meeting"
    timeout = datetime.timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=size, timeout=timeout)
    return dist.group.WORLD


def mpi():
    from mpi4py import MPI

    return MPI.COMM_WORLD


def main(engine, folder):
    if engine == "gloo":
        group = gloo(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), folder)
        rank, size = group.rank(), group.size()
    else:
        group = mpi()
        rank, size = group.rank, group.size
    # What an engine warns of ends the test.
    warnings.simplefilter("error")
    found = {f"{case}/{name}": value for case in CASES for name, value in train(case, group, size).items()}
    np.savez(Path(folder) / f"{rank}.npz", **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
