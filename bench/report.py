"""A record shown in a terminal, and saved: JSON, Markdown, pictures, and one HTML page that needs no other file."""

import base64
import io
from collections.abc import Iterable
from html import escape
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from fastadam.bench.record import Record
from fastadam.bench.registry import BASELINE
from fastadam.bench.tables import COLUMNS, absences, case_tables, notes, other_tables, to_markdown

# A terminal of this width shows whole tables, a narrower one these columns.
WIDE_ENOUGH, NARROW = 104, ("contender", "time", "GB/s", "of limit", "x baseline")
PAGE_WIDTH = 150


def show(record: Record, baseline: str, console: Console) -> None:
    """Print the tables of a record, and the notes on them."""
    columns = COLUMNS if console.width >= WIDE_ENOUGH else NARROW
    shown = [COLUMNS.index(column) for column in columns]
    for title, rows in case_tables(record, baseline):
        console.print(table(title, columns, [[row[index] for index in shown] for row in rows]))
    for title, names, rows in other_tables(record):
        console.print(table(title, names, rows))
    for note in [*notes(record, baseline), *absences(record)]:
        console.print(note, highlight=False, markup=False)


def table(title: str, columns: Iterable[str], rows: Iterable[list[str]]) -> Table:
    """A table with the rows of fastadam in bold, and those of limits dimmed."""
    shown = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        shown.add_column(column, justify="right" if index else "left", no_wrap=index > 0)
    for row in rows:
        style = "bold" if row[0].startswith("fastadam") else "dim" if row[0].startswith("limit") else None
        shown.add_row(*row, style=style)
    return shown


def to_html(record: Record, images: Iterable[tuple[str, str, bytes]], baseline: str = BASELINE) -> str:
    """What `show` prints, as a page that contains the pictures too."""
    console = Console(record=True, width=PAGE_WIDTH, file=io.StringIO())
    show(record, baseline, console)
    lines = []
    for _, title, png in images:
        data = base64.b64encode(png).decode()
        lines += [f"<h2>{escape(title)}</h2>", f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">']
    return console.export_html().replace("</body>", "\n".join([*lines, "</body>"]))


def keep(record: Record, folder: Path | None) -> None:
    """Save the measured times, from which all else can be made again."""
    if folder:
        (folder / "benchmark.json").write_text(record.to_json(), encoding="utf-8")


def write(record: Record, baseline: str, folder: Path) -> list[str]:
    """Write the record into `folder` in every form; return the names of the files."""
    from fastadam.bench.pictures import pictures

    keep(record, folder)
    images = list(pictures(record))
    texts = {"benchmark.md": to_markdown(record, baseline), "benchmark.html": to_html(record, images, baseline)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, _, png in images:
        (folder / name).write_bytes(png)
    return ["benchmark.json", *texts, *(name for name, _, _ in images)]
