"""A process that forks others, which save in a loop, and kills them: `python killed_saves.py DIRECTORY KILLS SEED`.

Whatever the moment of a kill, every file must be one that was saved, whole. It ends with one line of JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

import fastadam

SIZE = 200_000


def optimizer():
    return fastadam.Adam({"w": np.zeros(SIZE, np.float32)})


def fill(opt, value):
    """Let everything that is saved be `value`, so that a file that is mixed of two shows."""
    opt.params["w"] = opt.buffers.m[...] = opt.buffers.v[...] = value
    opt.param_groups[0]["lr"] = float(value)


def value_of(opt):
    (value,) = {float(array.flat[0]) for array in (opt.params["w"], opt.buffers.m, opt.buffers.v)}
    for array in (opt.params["w"], opt.buffers.m, opt.buffers.v):
        assert (array == value).all(), "a file of two saves"
    assert opt.param_groups[0]["lr"] == value
    return value


def save_for_ever(path, first, keep, silent, ready):
    """Save in a loop; after `silent` saves, tell so through the pipe `ready`, however busy the machine is."""
    opt = optimizer()
    for count, value in enumerate(range(first + 1, 10**6)):
        if count == silent:
            os.write(ready, b"!")
        fill(opt, value)
        opt.save(path, keep=keep)


def main(directory, kills, seed):
    dice, path, opt = random.Random(seed), Path(directory) / "run.safetensors", optimizer()
    fill(opt, 1)
    opt.save(path)
    last, leftovers, advanced = 1.0, 0, 0
    for number in range(kills):
        told, ready = os.pipe()
        child = os.fork()
        if not child:
            save_for_ever(path, int(last), 1 + number % 3, number % 2, ready)
            os._exit(0)
        os.close(ready)
        os.read(told, 1)
        os.close(told)
        time.sleep(dice.uniform(0.0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        opt.load(path)
        value = value_of(opt)
        assert value >= last
        for other in path.parent.glob("run.[0-9].safetensors"):
            opt.load(other)
            assert value_of(opt) <= value
        leftovers += any(".saving" in each.name for each in path.parent.iterdir())
        advanced += value > last
        last = value
    fill(opt, 10**6)
    opt.save(path)
    left = [each.name for each in path.parent.iterdir() if ".saving" in each.name]
    print(json.dumps({"kills": kills, "during a save": leftovers, "after a save": advanced, "left": left}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
