"""A rank of gloo that trains and saves until it, or another, is killed."""

import sys
from pathlib import Path

from sharded_training import gloo, optimizer, take_steps


def main(folder, per_rank):
    import os

    rank = int(os.environ["RANK"])
    opt = optimizer(gloo(rank, int(os.environ["WORLD_SIZE"]), folder))
    for step in range(10_000):
        # A parameter without a gradient would have fewer steps.
        take_steps(opt, [step], rank, 2)
        opt.save(folder / "run.safetensors", per_rank=per_rank)
        (folder / f"ready-{rank}").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "True")
