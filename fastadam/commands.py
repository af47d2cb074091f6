"""The commands of `fastadam`. It needs Typer, so `fastadam.cli` imports it and says so where it is missing."""

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from fastadam.cli import versions

app = typer.Typer(no_args_is_help=True, add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


class DeviceName(str, Enum):
    """Where the demo trains."""

    cpu = "cpu"
    cuda = "cuda"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(versions())
        raise typer.Exit


@app.callback()
def fastadam_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The Adam optimizer step as one fused pass, in place, where the parameters lie, on CPU and CUDA."""


@app.command()
def demo(
    device: Annotated[DeviceName, typer.Option(help="Where to train.")] = DeviceName.cpu,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="For parameters, batches and data split.")] = 0,
    output: Annotated[Path, typer.Option(help="Directory for the pictures.")] = Path("fastadam-demo"),
) -> None:
    """Train two small models and a language model of bytes with several forms of Adam; compare results and time."""
    from fastadam.demo.run import DemoError, run

    try:
        raise typer.Exit(run(device.value, seed, output))
    except DemoError as error:
        raise _refused(error) from None


Names = list[str] | None
_ONLY = "Only this one, or all that begin like this; may be repeated."


@app.command()
def bench(
    full: Annotated[bool, typer.Option("--full", help="Every contender, workload, kind of step, and cost.")] = False,
    contender: Annotated[Names, typer.Option(help=_ONLY)] = None,
    workload: Annotated[Names, typer.Option(help=_ONLY)] = None,
    kind: Annotated[Names, typer.Option(help="plain, clip, full, extras, calls, groups or rows; likewise.")] = None,
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
    from fastadam.bench import command

    if load and (full or contender or workload or kind or rounds or costs):
        raise typer.BadParameter("takes a saved run, and so no choice of what to run", param_hint="--load")
    options: dict[str, Any] = {"save": save, "load": load, "compare": compare, "threshold": threshold}
    try:
        cases = command.choose(full, contender or [], workload or [], kind or [], rounds)
        status = command.bench(cases, baseline=baseline, all_costs=costs or full, console=_console(), **options)
    except command.BenchError as error:
        raise _refused(error) from None
    raise typer.Exit(status)


@app.command()
def info() -> None:
    """Say what would run on this machine, and how fast its memory is."""
    from fastadam.bench.info import info as show

    show()


@app.command()
def checkpoint(
    file: Annotated[Path, typer.Argument(help="What `save` of an optimizer has written.", show_default=False)],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte too; the exit status is 1 if the file is damaged.")
    ] = False,
) -> None:
    """Show what is in a checkpoint: names, shapes, dtypes, bytes, steps and settings."""
    from fastadam.checkpoints import CheckpointError
    from fastadam.checkpoints.show import show

    try:
        raise typer.Exit(show(file, _console(), verify=verify))
    except CheckpointError as error:
        _refused(error)
        raise typer.Exit(1) from None
    except OSError as error:
        raise _refused(error) from None


def _console():
    """A console. Without a terminal it is as wide as the tables need."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=120)


def _refused(error: Exception) -> typer.Exit:
    """Print why nothing was done, and return the exit."""
    print(f"fastadam: {error}", file=sys.stderr)
    return typer.Exit(2)
