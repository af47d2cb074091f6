"""Saves that are killed or refused: the earlier file stays whole, and nothing is left in the end."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from checkpointing import everything, small

from fastadam.checkpoints import atomic
from fastadam.checkpoints import pieces as checkpoint_pieces

HERE = Path(__file__).parent
posix = pytest.mark.skipif(os.name != "posix", reason="kills and limits of POSIX")


def run(program, *arguments, before=()):
    command = [*before, sys.executable, str(HERE / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@posix
@pytest.mark.parametrize("kills", [40, pytest.param(500, marks=pytest.mark.long)])
def test_a_kill_leaves_the_old_file_or_the_new_one(kills, tmp_path):
    seen = run("killed_saves.py", tmp_path, kills, 1)
    assert seen["left"] == []
    # Kills that meet nothing prove nothing.
    assert seen["during a save"] > kills // 10
    assert seen["after a save"] > kills // 10


@pytest.fixture
def public():
    """A directory that every user may look into."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    directory.chmod(0o755)
    shutil.rmtree(directory)


@posix
@pytest.mark.parametrize(
    ("case", "error", "reason"),
    [
        ("limit", "OSError", "File too large"),
        ("read-only directory", "PermissionError", "Permission denied"),
        ("unreadable", "PermissionError", "Permission denied"),
    ],
)
def test_what_cannot_be_written_or_read_is_said_and_changes_nothing(case, error, reason, public):
    seen = run("refused_saves.py", public, case)
    assert seen["error"][0] == error
    assert reason in seen["error"][1]
    assert "run.safetensors" in seen["error"][1]
    assert ".saving" not in seen["error"][1]
    assert seen["files"] == ["run.safetensors"]
    assert seen["same"]


@posix
def test_a_full_disk_is_said_and_changes_nothing(public):
    mounted = f"mount -t tmpfs -o size=1m none {public} && exec"
    shell = ["unshare", "--mount", "sh", "-c", f'{mounted} "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*shell, "true"], capture_output=True).returncode:
        pytest.skip("no small file system may be mounted here")
    seen = run("refused_saves.py", public, "full", before=shell)
    assert seen["error"][0] == "OSError"
    assert "No space left" in seen["error"][1]
    assert seen["files"] == ["run.safetensors"]
    assert seen["same"]


def test_a_disk_that_fills_up_while_writing(tmp_path, monkeypatch):
    opt, path = small(), tmp_path / "run.safetensors"
    opt.save(path)
    before, saved = everything(opt), path.read_bytes()

    def full(file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_pieces, "_write_all", full)
    with pytest.raises(OSError, match="`path` must be a file that can be written: No space left on device"):
        opt.save(path)
    assert path.read_bytes() == saved
    assert list(tmp_path.iterdir()) == [path]
    assert everything(opt) == before


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_save_leaves_nothing(interruption, tmp_path, monkeypatch):
    opt, path = small(), tmp_path / "run.safetensors"
    opt.save(path)
    saved = path.read_bytes()

    def interrupted(*arguments):
        raise interruption

    monkeypatch.setattr(atomic.os, "fsync", interrupted)
    with pytest.raises(interruption):
        opt.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == saved
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_in_the_way(tmp_path):
    opt, path = small(), tmp_path / "run.safetensors"
    path.mkdir()
    with pytest.raises(
        IsADirectoryError, match=r"`path` must be a file that can be written: Is a directory.*run\.safe"
    ):
        opt.save(path)
    with pytest.raises(IsADirectoryError):
        opt.load(path)
    assert list(tmp_path.rglob("*")) == [path]


def test_what_cannot_be_is_found_out_before_anything_is_written(tmp_path, monkeypatch):
    def no_space(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opt = small()
    monkeypatch.setattr(checkpoint_pieces, "_write_all", lambda *arguments: pytest.fail("written"))
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        opt.save(tmp_path / "directory")
    monkeypatch.setattr(checkpoint_pieces.os, "posix_fallocate", no_space, raising=False)
    with pytest.raises(OSError, match="No space left on device"):
        opt.save(tmp_path / "run.safetensors")


def test_the_path_is_there_at_every_moment(tmp_path, monkeypatch):
    opt, path, replace = small(), tmp_path / "run.safetensors", os.replace
    opt.save(path)
    moments = []
    monkeypatch.setattr(atomic.os, "replace", lambda *names: (moments.append(path.exists()), replace(*names)))
    for _ in range(4):
        opt.save(path, keep=3)
    assert moments == [True] * len(moments)
    assert len(moments) > 4


def test_earlier_files_are_kept_without_links(tmp_path, monkeypatch):
    def no_links(*names):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(atomic.os, "link", no_links)
    opt, path = small(), tmp_path / "run.safetensors"
    opt.save(path, keep=2)
    saved = path.read_bytes()
    opt.param_groups[0]["lr"] = 0.5
    opt.save(path, keep=2)
    assert (tmp_path / "run.1.safetensors").read_bytes() == saved != path.read_bytes()


def test_a_directory_that_is_missing(tmp_path):
    path = tmp_path / "missing" / "run.safetensors"
    with pytest.raises(FileNotFoundError, match="`path` must be a file that can be written: No such file or directory"):
        small().save(path)
    with pytest.raises(FileNotFoundError):
        small().load(path)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_this_path_alone_are_removed(tmp_path):
    opt, path = small(), tmp_path / "run.safetensors"
    mine = tmp_path / ".run.safetensors.0123456789abcdef.saving"
    others = [
        tmp_path / name for name in (".other.safetensors.01.saving", ".run.safetensors", "run.safetensors.saving")
    ]
    for file in (mine, *others):
        file.write_bytes(b"half")
    opt.save(path)
    assert set(tmp_path.iterdir()) == {path, *others}


@posix
def test_a_file_that_is_being_written_is_no_leftover(tmp_path):
    opt, path = small(), tmp_path / "run.safetensors"
    with atomic.replacing(path) as file:
        file.write(b"in the middle")
        opt.save(path)
        assert Path(file.name).exists()
        whole = path.read_bytes()
        file.write(b", and at its end")
    assert path.read_bytes() == b"in the middle, and at its end"
    assert whole != b"in the middle"


def test_the_file_and_its_directory_are_flushed_before_the_name_is_believed(tmp_path, monkeypatch):
    done, path = [], tmp_path / "run.safetensors"
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(atomic.os, "fsync", lambda handle: (done.append(_kind(handle)), fsync(handle)))
    monkeypatch.setattr(atomic.os, "replace", lambda *names: (done.append("replace"), replace(*names)))
    small().save(path)
    assert done == ["file", "replace", "directory"] if os.name == "posix" else ["file", "replace"]


def _kind(handle):
    return "directory" if os.path.isdir(f"/proc/self/fd/{handle}") else "file"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is told by Linux")
def test_saving_and_loading_take_no_second_copy_of_the_state(tmp_path):
    program = """
import sys, numpy as np, fastadam
from threading import Event, Thread

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

opt = fastadam.Adam({"w": np.ones(30_000_000, np.float32), "k": np.ones((3_000, 1_000), np.float32, order="F")})
opt.buffers.m[...] = opt.buffers.v[...] = 1.0
before, most, stop = anonymous(), 0.0, Event()

def watch():
    global most
    while not stop.wait(0.002):
        most = max(most, anonymous())

watcher = Thread(target=watch)
watcher.start()
opt.save(sys.argv[1])
opt.load(sys.argv[1])
stop.set()
watcher.join()
print(most - before)
"""
    path = tmp_path / "run.safetensors"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    path.unlink()
    assert float(done.stdout) < 64


def test_a_file_of_nothing(tmp_path):
    from fastadam import Adam

    opt, path = Adam({"none": np.ones((0, 3))}), tmp_path / "run.safetensors"
    opt.save(path)
    opt.load(path)
