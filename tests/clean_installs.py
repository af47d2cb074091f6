"""Builds wheel and sdist, and tries each in a clean environment of each Python that is found: `make test-pythons`.

    python tests/clean_installs.py [--torch NAME] NAME ...

A name is that of an interpreter, such as python3.12: the one on PATH, or else one that pyenv has. Those that are not
there are named at the end. In each environment fastadam is installed without extras, tests/installed.py runs, and then
the tests of `SUITE`, from the tests that the sdist has; then come the extras `checkpoint` and `thinc` and, with
the Python of `--torch`, the extra `torch`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
# They need NumPy, Numba and pytest alone, and are short.
SUITE = ("optimizer", "state", "functional", "clipping", "sparse", "storage", "options", "bad_options")


def run(*command, **options):
    subprocess.run([str(part) for part in command], check=True, **options)


def interpreter(name):
    """The path of an interpreter that runs, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for path in (shutil.which(name), *sorted(pyenv.glob(f"*/bin/{name}"))):
        # A shim of pyenv is there whether or not its version is switched on.
        if path and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    return None


class Environment:
    """A virtual environment with nothing but pip in it."""

    def __init__(self, python, folder):
        run(python, "-m", "venv", folder)
        self._bin = folder / "bin"

    def install(self, *what):
        quiet = ("--quiet", "--disable-pip-version-check")
        self.python("-m", "pip", "install", *quiet, "--constraint", ROOT / "constraints.txt", *what)

    def python(self, *arguments, **options):
        run(self._bin / "python", *arguments, **options)


def built(folder):
    """The sdist, the wheel that was made of it, and the folder into which the sdist was unpacked."""
    maker = Environment(sys.executable, folder / "build")
    maker.install("build")
    maker.python("-m", "build", "--outdir", folder, ROOT, stdout=subprocess.DEVNULL)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return sdist, wheel, folder / sdist.name.removesuffix(".tar.gz")


def try_out(python, archive, source, folder, *, torch):
    """Install `archive` in a clean environment in `folder`, and run what is told above."""
    environment, smoke = Environment(python, folder / "environment"), source / "tests" / "installed.py"
    elsewhere = {"cwd": folder, "env": {**os.environ, "NUMBA_CACHE_DIR": str(folder.parent / "cache")}}
    environment.install(archive)
    environment.python(smoke, **elsewhere)
    environment.install("pytest")
    shutil.copytree(source / "tests", folder / "tests")
    shutil.copy(source / "pyproject.toml", folder)
    files = [folder / "tests" / f"test_{name}.py" for name in SUITE]
    environment.python("-m", "pytest", "--quiet", "--no-header", "-r", "", *files, **elsewhere)
    for extra in ("checkpoint", "thinc", "torch") if torch else ("checkpoint", "thinc"):
        environment.install(f"{archive}[{extra}]")
        environment.python(smoke, **elsewhere)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", help="an interpreter")
    parser.add_argument("--torch", metavar="NAME", help="the one that the extra `torch` is installed for as well")
    arguments = parser.parse_args()
    found = {name: path for name in arguments.names if (path := interpreter(name))}
    if not found:
        parser.error(f"none of {', '.join(arguments.names)} was found")
    with tempfile.TemporaryDirectory() as made:
        sdist, wheel, source = built(Path(made))
        for name, python in found.items():
            for archive in (wheel, sdist):
                print(f"{name}, {archive.name}", flush=True)
                folder = Path(made, f"{name} {archive.suffix}")
                folder.mkdir()
                try_out(python, archive, source, folder, torch=name == arguments.torch)
                shutil.rmtree(folder)
    missing = [name for name in arguments.names if name not in found]
    print(f"tried with {', '.join(found)}" + (f"; not found: {', '.join(missing)}" if missing else ""))


if __name__ == "__main__":
    main()
