"""What a sharded step costs: `python -m fastadam.bench.sharding --save FILE` runs ranks of gloo on this machine.

Ranks are processes of one machine, which share its cores and its memory: the times say what part of a step collectives
take here, and nothing of a network. Bytes and memory are those of any machine. `docs/publish.py` makes the table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

import fastadam
from fastadam.bench import machine

RANKS = (1, 2, 4, 8)
SETTINGS = {"float32": {}, "float32, clipped": {"max_grad_norm": 1.0}, "8-bit moments": {"moment_dtype": "float8"}}
STEPS = 7


class Counted:
    """A process group of torch.distributed that counts bytes, and the time until each collective is done."""

    def __init__(self, group):
        from fastadam.sharding.groups import TorchGroup

        self._group = TorchGroup(group)
        self.rank, self.size = self._group.rank, self._group.size
        self.nbytes, self.seconds = 0, 0.0

    def reduce_scatter(self, flat, shard):
        """Sum and scatter, waited for."""
        self._done(self._group.reduce_scatter, flat, shard)

    def all_gather(self, shard, flat):
        """Gather, waited for."""
        self._done(self._group.all_gather, shard, flat)

    def _done(self, collective, *arrays):
        start = perf_counter()
        collective(*arrays).wait()
        self.seconds += perf_counter() - start
        # What a rank sends, and receives, where nothing is sent twice.
        self.nbytes += max(array.nbytes for array in arrays) * (self.size - 1) // self.size


def measure(group, count, options):
    """Memory, bytes and times of a rank: medians over steps."""
    # Of several sizes, one of them large.
    params = {name: np.zeros(size, np.float32) for name, size in (("a", count * 3 // 4), ("b", count // 4), ("c", 9))}
    opt = fastadam.AdamW(params, lr=1e-3, shard=group, **options)
    for gradient in opt.grads.values():
        gradient[...] = 1e-3
    steps, collectives, sent = [], [], []
    for _ in range(STEPS):
        group.nbytes, group.seconds = 0, 0.0
        start = perf_counter()
        opt.step(grad_scale=1.0 / group.size)
        steps.append(perf_counter() - start)
        collectives.append(group.seconds)
        sent.append(group.nbytes)
    kept = sum(each.nbytes for each in opt.memory_usage().buffers if each.name not in ("p", "g"))
    medians = [statistics.median(each[1:]) for each in (steps, collectives, sent)]
    return dict(zip(("kept", "step", "collectives", "sent"), (kept, *medians), strict=True))


def run_rank(rank, size, folder, count):
    """Measure as one rank; rank 0 writes what was found."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    fastadam.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    group = Counted(dist.group.WORLD)
    found = {name: measure(group, count, options) for name, options in SETTINGS.items()}
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def measured(count, ranks=RANKS):
    """What rank 0 measured, by setting and number of ranks."""
    found: dict[str, dict[str, dict]] = {}
    for size in ranks:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", __spec__.name, "--count", str(count), "--rank"]
            processes = [subprocess.Popen([*command, f"{rank}/{size}", folder]) for rank in range(size)]
            if sum(process.wait() != 0 for process in processes):
                raise RuntimeError(f"a rank of {size} has failed")
            of_size = json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))
        for name, numbers in of_size.items():
            found.setdefault(name, {})[str(size)] = numbers
    return {"machine": machine.facts(), "count": count, "found": found}


COLUMNS = ["setting", "ranks", "kept a rank", "of one rank's", "sent a step", "step", "in collectives"]


def rows(record):
    """The rows of the table."""
    for name, by_ranks in record["found"].items():
        for size, each in by_ranks.items():
            yield [
                name,
                size,
                f"{each['kept'] / 1e6:,.2f} MB",
                f"1/{by_ranks['1']['kept'] / each['kept']:.2f}",
                f"{each['sent'] / 1e6:,.2f} MB",
                f"{1e3 * each['step']:,.1f} ms",
                f"{100 * each['collectives'] / each['step']:.0f}%",
            ]


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", type=Path, help="write what was measured to this file")
    parser.add_argument("--count", type=int, default=10_000_000, help="how many parameters")
    parser.add_argument("--rank", nargs=2, metavar=("RANK/SIZE", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        rank, size = map(int, given.rank[0].split("/"))
        run_rank(rank, size, given.rank[1], given.count)
        return
    record = measured(given.count)
    if given.save:
        given.save.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for row in (COLUMNS, *rows(record)):
        print("  ".join(f"{cell:>16}" for cell in row))


if __name__ == "__main__":
    main()
