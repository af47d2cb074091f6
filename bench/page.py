"""A record as one HTML page that needs no other file."""

import base64
from collections.abc import Iterable
from html import escape

from fastadam.bench.contenders import BASELINE
from fastadam.bench.record import Record
from fastadam.bench.tables import COLUMNS, absences, case_tables, notes, other_tables

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --ours: #2a7de133; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { white-space: normal; font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
tr.ours { background: var(--ours); }
tr.limit { opacity: .65; font-style: italic; }
img { max-width: 100%; background: white; border-radius: 4px; }
p.note { margin: .3rem 0; font-size: .9rem; }
"""


def to_html(record: Record, images: Iterable[tuple[str, str, bytes]], baseline: str = BASELINE) -> str:
    """Tables and pictures, with the pictures inside."""
    body = ["<h1>Benchmark of Adam steps</h1>"]
    body += [f'<p class="note">{escape(note)}</p>' for note in notes(record, baseline)]
    for _, title, png in images:
        data = base64.b64encode(png).decode()
        body += [f"<h2>{escape(title)}</h2>", f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">']
    for title, rows in case_tables(record, baseline):
        body += [f"<h2>{escape(title)}</h2>", *_table(COLUMNS, rows)]
    for title, columns, rows in other_tables(record):
        body += [f"<h2>{escape(title)}</h2>", *_table(columns, rows)]
    if absences(record):
        body += ["<h2>Not measured</h2>", *(f'<p class="note">{escape(line)}</p>' for line in absences(record))]
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Benchmark of Adam steps</title>\n<style>{_STYLE}</style>\n</head>\n<body>"
    )
    return "\n".join([head, *body, "</body>\n</html>\n"])


def _table(columns, rows):
    yield '<div class="scroll"><table>'
    yield "<tr>" + "".join(f"<th>{escape(column)}</th>" for column in columns) + "</tr>"
    for row in rows:
        kind = "ours" if row[0].startswith("fastadam") else "limit" if row[0].startswith("limit") else "other"
        yield f'<tr class="{kind}">' + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
    yield "</table></div>"
