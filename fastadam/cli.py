"""The command line, `fastadam` or `python -m fastadam`."""

import sys
from io import TextIOWrapper

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


def main() -> None:
    """Run the command line, and end the process with its exit status."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an ASCII stdout gets what it cannot show as an escape
    try:
        from fastadam.commands import app

        app()
    except ModuleNotFoundError as error:
        package = _OF_EXTRAS.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        extra = "bench" if {"bench", "info"} & set(sys.argv[1:2]) else "demo"
        message = f'{package} is not installed, and this command needs it: pip install "fastadam[{extra}]"'
        print(f"fastadam: {message}", file=sys.stderr)
        sys.exit(2)
