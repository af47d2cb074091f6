"""A file that is replaced as a whole: whoever is killed while writing leaves the old file or the new one."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed
    fcntl = None  # type: ignore[assignment]

_ENDING = ".saving"


@contextmanager
def replacing(path: Path, keep: int = 1) -> Iterator[IO[bytes]]:
    """A new file, open for reading and writing, that takes the place of `path` if all goes well.

    It is written under another name in the same directory, flushed to the disk, and renamed. With `keep` above 1, the
    earlier file stays as `<stem>.1<suffix>`, the one before as `<stem>.2<suffix>`, and so on.

    Raises:
        OSError: the file cannot be written. What was at `path` is there as before.
    """
    target = Path(os.path.realpath(path))  # the file that a link leads to, and not the link
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        remove_leftovers(target)
        with _new_file(target) as file:
            yield file
            os.fsync(file.fileno())
            _keep_earlier(target, keep)
            if fcntl is None:
                file.close()
            os.replace(file.name, target)
    except OSError as error:
        reason = f"`path` must be a file that can be written: {error.strerror or error}"
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error
    _flush_directory(target.parent)


@contextmanager
def _new_file(target):
    """A file beside `target`, locked as long as it is open, and gone if it is not renamed."""
    while True:
        temporary = target.with_name(f".{target.name}.{token_hex(8)}{_ENDING}")
        with open(temporary, "x+b", buffering=0) as file:
            try:
                # Before it was locked, another process may have taken it for a leftover.
                if _locked(file) and not temporary.exists():
                    continue
                yield file
                return
            except BaseException:
                file.close()
                with suppress(OSError):
                    temporary.unlink()
                raise


def remove_leftovers(path: Path) -> None:
    """Remove what killed runs have left of saves of `path`: files that nobody holds open to write them."""
    names = f".{path.name}."
    for leftover in path.parent.iterdir():
        if leftover.name.startswith(names) and leftover.name.endswith(_ENDING):
            with suppress(OSError), open(leftover, "r+b") as file:
                if fcntl is None or _locked(file):
                    leftover.unlink()


def earlier(path: Path, number: int) -> Path:
    """The name of the file that was at `path` before the last `number` saves."""
    return path.with_name(f"{path.stem}.{number}{path.suffix}")


def _locked(file):
    """Hold `file` as ours as long as it is open, and return whether that worked."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process has it, or the file system has no locks
        return False
    return True


def _keep_earlier(path, keep):
    if keep < 2 or not path.exists():
        return
    for number in range(keep - 1, 1, -1):
        with suppress(FileNotFoundError):
            os.replace(earlier(path, number - 1), earlier(path, number))
    # A second name of the same file: `path` is there at every moment.
    first = earlier(path, 1)
    with suppress(FileNotFoundError):
        first.unlink()
    try:
        os.link(path, first)
    except OSError:  # a file system without links
        shutil.copyfile(path, first)


def _flush_directory(directory):
    """Let the new name be on the disk too, where a directory can be flushed."""
    if os.name == "nt":
        return
    with suppress(OSError):  # some network file systems cannot
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
