"""`fastadam checkpoint`: what is in a checkpoint, and whether every byte of it is as it was saved."""

from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastadam.checkpoints.loading import Checkpoint, opened

_WORDS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "U16": "uint16", "U8": "uint8"}


def show(path: Path, console: Console, *, verify: bool) -> int:
    """Print what is in the checkpoint at `path`; return the exit status, 1 if it is found to be damaged.

    Raises:
        OSError, CheckpointError: the file cannot be read, is no checkpoint, or has a damaged header.
    """
    with opened(path) as checkpoint:
        console.print(_title(checkpoint, path))
        console.print(_tensors(checkpoint))
        for line in _settings(checkpoint):
            console.print(line)
        if not verify:
            return 0
        damaged = checkpoint.damaged()
    if damaged:
        console.print(_plain(f"damaged: {', '.join(damaged)}"), style="bold red")
        return 1
    console.print("Every byte is as it was saved.")
    return 0


def _title(checkpoint: Checkpoint, path: Path) -> Text:
    manifest = checkpoint.manifest
    return _plain(
        f"{path}: {manifest.optimizer} of fastadam {manifest.fastadam}, {len(manifest.state):,} parameters, "
        f"{checkpoint.nbytes:,} bytes"
    )


def _tensors(checkpoint: Checkpoint) -> Table:
    """A row for each array, those of one parameter together."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, right in (("name", False), ("shape", False), ("dtype", False), ("bytes", True), ("steps", True)):
        grid.add_column(heading, justify="right" if right else "left", overflow="fold")
    for name, tensors in checkpoint.owners().items():
        numbers = checkpoint.manifest.state[name]
        steps = f"{numbers.get('step')}" + (f" ({numbers['skipped']} not taken)" if numbers.get("skipped") else "")
        for tensor in tensors.values():
            dtype, shape, *_ = checkpoint.tensors[tensor]
            cells = tensor, str(shape), _WORDS[dtype], f"{checkpoint.tensors[tensor].nbytes:,}", steps
            grid.add_row(*map(_plain, cells))
            steps = ""
    return grid


def _settings(checkpoint: Checkpoint) -> Iterator[Text]:
    """A line for each group, and one for the options."""
    manifest = checkpoint.manifest
    for index, group in enumerate(manifest.param_groups):
        settings = {key: value for key, value in group.items() if key != "params"}
        if str(index) in manifest.schedules:
            settings["lr"] = f"{settings.get('lr')} of {manifest.schedules[str(index)]}"
        yield _plain(f"group {index}, {len(group['params']):,} parameters: {_listed(settings)}")
    yield _plain(f"options: {_listed({key: value for key, value in manifest.options.items() if value is not None})}")
    yield _plain(f"formats: {_listed(manifest.formats)}")


def _listed(settings):
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def _plain(text: str) -> Text:
    """`text` without markup, and without characters that a terminal would obey."""
    shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return Text(shown)
