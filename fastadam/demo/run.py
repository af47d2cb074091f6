"""`fastadam demo`: two small trainings in NumPy or CuPy, with three forms of Adam side by side, and a larger one."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fastadam.demo import language_report
from fastadam.demo.language import language
from fastadam.demo.language_run import language_contenders, train_in_turns, warm_up_language, why_no_torch
from fastadam.demo.models import Task, diabetes, digits
from fastadam.demo.report import Comparison, gain, save_picture, table
from fastadam.demo.training import CPU, Device, ResumedRun, contenders, train, warm_up
from fastadam.kernels.thread_count import asking

PICTURE, LANGUAGE_PICTURE = "losses-and-times.png", "language-model.png"

# On a GPU subnormal numbers are flushed to zero: far below the size of a rounding error of a parameter.
TOLERANCE_ON_GPU = 1e-6
# Losses of runs that differ by rounding alone have come apart by up to a hundredth.
TOLERANCE_OF_LOSSES = 0.05
_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


class DemoError(Exception):
    """The demo cannot run here, for a reason that the user can do something about."""


def run(device_name: str, seed: int, output: Path) -> int:
    """Train, show the figures and save the pictures.

    Returns the exit status: 1 if fastadam differs from its NumPy reference, and then the language model is left out, or
    if the losses of the language model come apart.

    Args:
        device_name: "cpu" or "cuda"; the language model is trained on the CPU alone.
        seed: Seed for starting parameters, batches and the split of the data.
        output: Directory for the pictures, made if missing.

    Raises:
        DemoError: no CUDA device, a directory that cannot be written, or a Python without its documentation. Nothing
            has been trained then.
    """
    device = CPU if device_name == "cpu" else cuda_device()
    require_writable(output)
    text_task = _language_task() if device is CPU else None
    console = Console()
    comparisons = _compare(device, seed, console)
    for comparison in comparisons:
        console.print(table(comparison))
    picture = output / PICTURE
    save_picture(comparisons, picture)
    status = _verdict(comparisons, device, console)
    console.print(f"Picture: {escape(str(picture))}", soft_wrap=True)
    console.print(gain(comparisons[-1]))
    return status if status or text_task is None else _train_language_model(text_task, seed, output, console)


def cuda_device() -> Device:
    """The current CUDA device through CuPy."""
    try:
        import cupy
    except ImportError as error:
        raise DemoError(
            f'--device cuda needs CuPy, which cannot be imported ({error}): pip install "fastadam[cuda12]"'
        ) from error
    try:
        cupy.cuda.runtime.getDeviceCount()
        cupy.zeros(1).sum().item()
    except Exception as error:
        raise DemoError(
            f"--device cuda needs a working CUDA device, and CuPy finds none ({error}): use a machine with an "
            'NVIDIA GPU and its driver, and there pip install "fastadam[cuda12]"; or use --device cpu'
        ) from error
    return Device("cuda", cupy.asarray, cupy.asnumpy, lambda: cupy.cuda.get_current_stream().synchronize())


def require_writable(output: Path) -> None:
    """Make the directory and raise unless files can be written into it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=output).close()
    except OSError as error:
        raise DemoError(f"--output {output} must be a directory that can be written: {error}") from error


def _compare(device: Device, seed: int, console: Console) -> list[Comparison]:
    tasks = [diabetes(), digits(seed)]
    ready = sum(warm_up(task, device, seed) for task in tasks)
    console.print(
        f"fastadam's kernels compiled, or loaded from their cache, in {ready:.2f} s: not part of the times below."
    )
    comparisons = []
    with Progress(*_COLUMNS, console=console) as progress, TemporaryDirectory() as directory:
        for task in tasks:
            bar = progress.add_task(task.title, total=task.steps)
            resumed = ResumedRun(task, device, seed, Path(directory) / "checkpoint.safetensors")
            runs = [*contenders(task, device, seed), resumed]
            train(runs, seed, partial(progress.advance, bar))
            comparisons.append(Comparison(runs))
    return comparisons


def _language_task() -> Task:
    try:
        return language()
    except ModuleNotFoundError as error:
        raise DemoError(
            f"the language model reads Python's documentation, pydoc_data.topics of its standard library, which cannot "
            f"be imported ({error}): use a Python with its whole standard library"
        ) from error


def _train_language_model(task: Task, seed: int, output: Path, console: Console) -> int:
    """Train the language model with each optimizer that is there, show it, and return the exit status."""
    # After a product of matrices the threads of NumPy's BLAS and of torch wait for the next one with their cores kept
    # busy for a while: other threads of a step would wait for them. One alone is as fast as the memory.
    with asking(1), Progress(*_COLUMNS, console=console) as progress:
        warm_up_language(task, seed)
        runs = language_contenders(task, seed)
        bars = {run.name: progress.add_task(f"{task.title}, {run.name}", total=task.steps) for run in runs}
        train_in_turns(runs, seed, lambda run: progress.advance(bars[run.name]))
    console.print(language_report.table(runs))
    reason = why_no_torch()
    if reason is not None:
        console.print(f"Without torch's AdamW and ours in its place: {escape(reason)}")
    picture = output / LANGUAGE_PICTURE
    language_report.save_picture(runs, picture)
    apart = language_report.furthest_apart(runs)
    # Written so that NaN fails.
    if not apart <= TOLERANCE_OF_LOSSES:
        Console(stderr=True).print(f"error: the losses of the language model came {apart:.2%} apart.", style="bold red")
        return 1
    console.print(f"After the same steps the losses differ by {apart:.2%} at most: rounding in another order.")
    for sentence in (*language_report.gain(runs), *language_report.samples(runs, seed)):
        console.print(escape(sentence))
    console.print(f"Picture: {escape(str(picture))}", soft_wrap=True)
    return 0


def _verdict(comparisons: list[Comparison], device: Device, console: Console) -> int:
    """Say how the final parameters compare, and return the exit status."""
    furthest = max(comparison.from_reference for comparison in comparisons)
    # Written so that NaN fails.
    if not furthest <= (0.0 if device is CPU else TOLERANCE_ON_GPU):
        Console(stderr=True).print(
            f"error: fastadam ended {furthest:.2g} away from its in-place NumPy reference. Either its kernel is wrong "
            "on this machine, or NumPy's linear algebra gives different results for equal inputs here.",
            style="bold red",
        )
        return 1
    if device is CPU:
        console.print("fastadam and its in-place NumPy reference ended with exactly the same parameters.")
    else:
        console.print(
            f"Fed with the gradients from the GPU, the in-place NumPy reference on the CPU ended {furthest:.2g} away "
            "from fastadam: a GPU flushes subnormal numbers to zero, and nothing else may differ."
        )
    console.print("The textbook form rounds in another order, and training carries that on to the difference shown.")
    return _verdict_on_resuming(comparisons, console)


def _verdict_on_resuming(comparisons: list[Comparison], console: Console) -> int:
    """Say how the runs ended that were saved and resumed, and return the exit status."""
    if not all(comparison.is_resumed for comparison in comparisons):
        Console(stderr=True).print(
            "error: a run that was saved and resumed in the middle ended with other parameters than one that was not.",
            style="bold red",
        )
        return 1
    console.print("Saved in the middle and resumed by a new optimizer, each run ended the same to the last bit.")
    return 0
