"""Tables in Markdown, and in pages between marks like `<!-- name: written by ... -->` and `<!-- end of name -->`."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path


def write_between(page: Path, blocks: Mapping[str, Iterable[str]]) -> None:
    """Write lines between the marks of each block of a page, in place of what is there."""
    text = page.read_text(encoding="utf-8")
    for name, lines in blocks.items():
        text = between(text, name, lines)
    page.write_text(text, encoding="utf-8")


def between(text: str, name: str, lines: Iterable[str]) -> str:
    """`text` with lines between the marks of a block."""
    marks = re.compile(rf"(<!-- {re.escape(name)}: [^\n]* -->\n).*?(<!-- end of {re.escape(name)} -->)", re.DOTALL)
    if len(marks.findall(text)) != 1:
        raise ValueError(f"the page must have the marks of {name!r} once, has them {len(marks.findall(text))} times")
    return marks.sub(lambda found: "\n".join([found[1], *lines, "", found[2]]), text)


def markdown_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """The lines of a table whose first column is text and whose others are numbers."""
    columns = list(columns)
    cells = [columns, ["---", *["---:"] * (len(columns) - 1)], *map(list, rows)]
    return ["| " + " | ".join(line) + " |" for line in cells]
