"""The command line, `fastadam` or `python -m fastadam`."""

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import fastadam

if TYPE_CHECKING:
    from typer import Typer

# Packages of the extra `demo`, by the name under which they are imported.
_OF_DEMO = {"typer": "typer", "rich": "rich", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}


class DeviceName(str, Enum):
    """Where the demo trains."""

    cpu = "cpu"
    cuda = "cuda"


def main() -> None:
    """Run the command line, and end the process with its exit status."""
    try:
        application()()
    except ModuleNotFoundError as error:
        package = _OF_DEMO.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        sys.exit(_refuse(f'{package} is not installed, and this command needs it: pip install "fastadam[demo]"'))


def application() -> "Typer":
    """The commands. Typer is imported here so that its absence can be reported."""
    import typer

    app = typer.Typer(
        no_args_is_help=True, add_completion=False, context_settings={"help_option_names": ["-h", "--help"]}
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"fastadam {fastadam.__version__}")
            raise typer.Exit

    @app.callback()
    def fastadam_command(
        version: Annotated[
            bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
        ] = False,
    ) -> None:
        """The Adam optimizer step as one fused, in-place pass over flat buffers, on CPU and CUDA."""

    @app.command()
    def demo(
        device: Annotated[DeviceName, typer.Option(help="Where to train.")] = DeviceName.cpu,
        seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="For parameters, batches and data split.")] = 0,
        output: Annotated[Path, typer.Option(help="Directory for the picture.")] = Path("fastadam-demo"),
    ) -> None:
        """Train two small models with three forms of Adam, and compare results and time."""
        raise typer.Exit(_demo(device.value, seed, output))

    return app


def _demo(device: str, seed: int, output: Path) -> int:
    from fastadam.demo import DemoError, run

    try:
        return run(device, seed, output)
    except DemoError as error:
        return _refuse(str(error))


def _refuse(message: str) -> int:
    """Say why nothing was done; the exit status."""
    print(f"fastadam: {message}", file=sys.stderr)
    return 2
