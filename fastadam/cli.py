"""The command line, `fastadam` or `python -m fastadam`."""

import platform
import sys
from io import TextIOWrapper

import fastadam

# Import name -> package, for the packages of the extras.
_OF_EXTRAS = {
    "typer": "typer",
    "rich": "rich",
    "sklearn": "scikit-learn",
    "ml_dtypes": "ml_dtypes",
    "matplotlib": "matplotlib",
    "psutil": "psutil",
    "cpuinfo": "py-cpuinfo",
}
# Command -> extra; the others need `demo`.
_EXTRA_OF = {"bench": "bench", "checkpoint": "checkpoint"}
_HELP = ("", "-h", "--help")


def main() -> None:
    """Run the command line, and end the process with its exit status."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an ASCII stdout gets what it cannot show as an escape
    # These two need no extra, and so no Typer.
    if sys.argv[1:] == ["--version"]:
        print(versions())
        return
    if sys.argv[1:] == ["info"]:
        from fastadam.bench.info import info

        info()
        return
    try:
        from fastadam.commands import app

        app()
    except ModuleNotFoundError as error:
        package = _OF_EXTRAS.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        command = sys.argv[1] if sys.argv[1:] else ""
        extra = _EXTRA_OF.get(command, "demo")
        needs = f'pip install "fastadam[{extra}]"'
        if command in _HELP:
            message = f"`info` needs no extra; `demo`, `bench` and `checkpoint` each need one of its name: {needs}"
        else:
            message = f"{package} is not installed, and this command needs it: {needs}"
        print(f"fastadam: {message}", file=sys.stderr)
        sys.exit(2)


def versions() -> str:
    """What `fastadam --version` shows: the version, and those of what computes."""
    import numba
    import numpy

    return (
        f"fastadam {fastadam.__version__}, Python {platform.python_version()}, numpy {numpy.__version__}, "
        f"numba {numba.__version__}"
    )
