"""A process without privileges that cannot save: `python refused_saves.py DIRECTORY CASE` prints the error."""

import json
import os
import resource
import sys
from pathlib import Path

import numpy as np

import fastadam


def limit_file_size(directory):
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))


def make_unwritable(directory):
    directory.chmod(0o555)


def make_unreadable(directory):
    (directory / "run.safetensors").chmod(0)


CASES = {
    "limit": limit_file_size,
    "full": lambda directory: None,
    "read-only directory": make_unwritable,
    "unreadable": make_unreadable,
}


def main(directory, case):
    path = directory / "run.safetensors"
    opt = fastadam.Adam({"w": np.ones(500_000 if case == "full" else 5_000, np.float32)})
    small = fastadam.Adam({"w": np.ones(5, np.float32)})
    small.save(path)
    small.load(path)  # every module is imported before privileges are given up
    if os.getuid() == 0:
        os.chown(directory, 65534, 65534)
        os.chown(path, 65534, 65534)
        os.setgid(65534)
        os.setuid(65534)
    CASES[case](directory)
    before = opt.buffers.m.tobytes(), path.stat()
    act = small.load if case == "unreadable" else opt.save
    try:
        act(path)
        error = None
    except OSError as raised:
        error = [type(raised).__name__, str(raised)]
    after = opt.buffers.m.tobytes(), path.stat()
    files = sorted(each.name for each in directory.iterdir())
    if case != "unreadable":
        small.load(path)
    same = before[0] == after[0] and before[1].st_mtime_ns == after[1].st_mtime_ns
    print(json.dumps({"error": error, "files": files, "same": same}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
