"""The command line, `fastadam` or `python -m fastadam`."""

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import fastadam

if TYPE_CHECKING:
    from typer import Typer

# Packages of the extras, by the name under which they are imported.
_OF_EXTRAS = {
    "typer": "typer",
    "rich": "rich",
    "sklearn": "scikit-learn",
    "ml_dtypes": "ml_dtypes",
    "matplotlib": "matplotlib",
    "psutil": "psutil",
    "cpuinfo": "py-cpuinfo",
}


class DeviceName(str, Enum):
    """Where the demo trains."""

    cpu = "cpu"
    cuda = "cuda"


def main() -> None:
    """Run the command line, and end the process with its exit status."""
    try:
        application()()
    except ModuleNotFoundError as error:
        package = _OF_EXTRAS.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        extra = "bench" if {"bench", "info"} & set(sys.argv[1:2]) else "demo"
        sys.exit(_refuse(f'{package} is not installed, and this command needs it: pip install "fastadam[{extra}]"'))


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

    @app.command()
    def bench(
        full: Annotated[
            bool, typer.Option("--full", help="Every contender, workload, kind of step, and cost.")
        ] = False,
        contender: Annotated[
            list[str] | None, typer.Option(help="Only this one, or those that begin so; may be repeated.")
        ] = None,
        workload: Annotated[
            list[str] | None, typer.Option(help="Only this one, or those that begin so; may be repeated.")
        ] = None,
        kind: Annotated[
            list[str] | None, typer.Option(help="plain, clip, full, extras, calls, groups or rows; may be repeated.")
        ] = None,
        rounds: Annotated[int | None, typer.Option(min=1, help="Turns of each contender.")] = None,
        baseline: Annotated[str, typer.Option(help="The contender of the last column.")] = "NumPy, textbook",
        save: Annotated[Path | None, typer.Option(help="Directory for JSON, Markdown, pictures and a page.")] = None,
        load: Annotated[Path | None, typer.Option(help="Run nothing: take the run that is saved in this JSON.")] = None,
        compare: Annotated[
            Path | None, typer.Option(help="The JSON of an earlier run; the exit status is 1 if a step is slower now.")
        ] = None,
        threshold: Annotated[
            float, typer.Option(min=0, max=1, help="Part of its share of the limit that a step may lose.")
        ] = 0.15,
        costs: Annotated[bool, typer.Option("--costs", help="First-call and fixed costs too.")] = False,
    ) -> None:
        """Time Adam steps of all that is installed, in turns, beside the limit of the memory."""
        if load and (full or contender or workload or kind or rounds or costs):
            raise typer.BadParameter("takes a saved run, and so no choice of what to run", param_hint="--load")
        raise typer.Exit(
            _bench(
                (full, contender or [], workload or [], kind or [], rounds),
                save=save,
                load=load,
                compare=compare,
                threshold=threshold,
                baseline=baseline,
                all_costs=costs or full,
            )
        )

    @app.command()
    def info() -> None:
        """Say what would run on this machine, and how fast its memory is."""
        from rich.console import Console

        from fastadam.bench.command import info as show

        raise typer.Exit(show(Console()))

    return app


def _bench(chosen: tuple, **options: Any) -> int:
    from rich.console import Console

    from fastadam.bench.command import BenchError, bench, choose

    # Where there is no terminal, lines may be as long as the tables want.
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)

    try:
        return bench(choose(*chosen), console=console, **options)
    except BenchError as error:
        return _refuse(str(error))


def _demo(device: str, seed: int, output: Path) -> int:
    from fastadam.demo.run import DemoError, run

    try:
        return run(device, seed, output)
    except DemoError as error:
        return _refuse(str(error))


def _refuse(message: str) -> int:
    """Say why nothing was done; the exit status."""
    print(f"fastadam: {message}", file=sys.stderr)
    return 2
