"""What is made of a record: Markdown, a page, pictures, promises."""

import re
from html.parser import HTMLParser
from math import nan

import pytest
from bench_records import MACHINE, result, run

from fastadam.bench import marked
from fastadam.bench.registry import CONTENDERS
from fastadam.bench.page import to_html
from fastadam.bench.pictures import pictures
from fastadam.bench.promises import Promise, promises
from fastadam.bench.record import Record, Result
from fastadam.bench.tables import COLUMNS, duration, to_markdown
from fastadam.bench.workloads import MLP, RESNET50, SPLITS, flat

NAMES = ["NumPy, textbook", "fastadam, step(grads)", "fastadam", "limit, float32", "memory, copy"]
PNG = b"\x89PNG\r\n\x1a\n"


def markdown_tables(text):
    """The rows of each table, as cells."""
    found, before = [], ""
    for line in text.splitlines():
        if line.startswith("|"):
            found += [[]] * (not before.startswith("|"))
            found[-1] = [*found[-1], [cell.strip() for cell in line.strip("|").split("|")]]
        before = line
    return found


def test_markdown_tables_have_the_same_cells_in_every_row():
    record = run()
    record.results.append(result("fastadam", [2e-3], "MLP, 6 tensors", 4_481, "full"))
    text = to_markdown(record)
    steps, full, first = markdown_tables(text)
    for table in (steps, full, first):
        assert {len(row) for row in table} == {len(table[0])}
        assert set(table[1]) == {"---", "---:"}
    assert steps[0] == list(COLUMNS)
    assert [row[0] for row in steps[2:]] == NAMES
    assert steps[4] == ["fastadam", "4.0 us", "3.9 to 4.1", "0.400", "70.0", "0.50", "10.00"]
    assert full[2] == ["fastadam", "2.00 ms", "2.00 to 2.00", "446.329", "0.1", "-", "-"]
    assert first[2:] == [["import", "250.00 ms", "1.50 s"], ["memory", "2.0 MB", "-"]]
    for title in ("## flat 10,000, plain step", "## MLP, 6 tensors (4,481 parameters), full step", "## First call"):
        assert title in text.splitlines()


def test_what_was_not_measured_is_named():
    record = run()
    record.failed.append("MLP, plain: Keras: AssertionError: not equal")
    text = to_markdown(record)
    for line in ("optax not installed: optax, jit.", *record.skipped, *record.failed, "torch, compiled"):
        assert line in text
    assert "Not measured" not in to_markdown(Record(dict(MACHINE)))


class Page(HTMLParser):
    """Checks that elements are closed in their order, and keeps what is in them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.rows, self.titles, self.texts, self.tags = [], [], [], [], [], set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        self.texts += [""] * (tag in ("td", "th", "h2", "p"))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.rows[-1].append((tag, self.texts[-1]))
        if tag == "h2":
            self.titles.append(self.texts[-1])

    def handle_data(self, data):
        if self.texts:
            self.texts[-1] += data


NAUGHTY = """<script>alert("1")</script> & 'co'"""


def test_the_page_has_a_row_for_each_result_and_escapes_names():
    record = run()
    record.results.append(result(NAUGHTY, [1e-3]))
    record.missing[NAUGHTY] = record.machine["processor"] = NAUGHTY
    record.tables[NAUGHTY] = {NAUGHTY: {NAUGHTY: 1.0}}
    page = Page(to_html(record, [("some.png", NAUGHTY, PNG)], NAUGHTY))
    rows = [[text for _, text in row] for row in page.rows if row[0][0] == "td"]
    assert [row[0] for row in rows] == [*NAMES, NAUGHTY, "import", "memory", NAUGHTY]
    assert rows[2] == ["fastadam", "4.0 us", "3.9 to 4.1", "0.400", "70.0", "0.50", "250.00"]
    assert [("th", ""), ("th", NAUGHTY)] in page.rows
    assert ("img", "alt", NAUGHTY) in page.attributes
    assert "script" not in page.tags
    assert page.titles == [NAUGHTY, "flat 10,000, plain step", "First call", NAUGHTY, "Not measured"]
    (note, *_) = (text for text in page.texts if text.startswith("Medians"))
    assert f"2026-01-02: {NAUGHTY}, 256 bits, 3 of 4 threads (omp); fastadam 0.1.0" in note


def test_the_page_needs_no_other_file():
    text = to_html(run(), [("one.png", "One", PNG), ("two.png", "Two", PNG)])
    links = [(tag, value) for tag, name, value in Page(text).attributes if name in ("src", "href", "srcset", "data")]
    assert links == [("img", "data:image/png;base64,iVBORw0KGgo=")] * 2
    assert not re.search(r"url\(|@import|<link|<script|http", text)


def timed(contender, workload, kind="plain", speed=1.0):
    """A result, slower for more bytes."""
    one = Result.of(CONTENDERS[contender], workload, kind)
    one.seconds += [one.bytes * one.size * 1e-10 / speed] * 3
    return one


def full():
    """A record with something for every picture."""
    record = Record(dict(MACHINE))
    for workload in (flat(1_000_000), flat(10_000_000), *SPLITS[1:], MLP, RESNET50):
        record.results += [timed(name, workload) for name in ("torch, fused", "fastadam", "limit, float32")]
    for layout in ("bfloat16 m, v", "8-bit m, v"):
        record.results += [timed(f"{who}, {layout}", flat(10_000_000)) for who in ("fastadam", "limit")]
    return record


def test_pictures_of_all_that_a_record_has():
    images = list(pictures(full()))
    assert [name for name, _, _ in images] == ["sizes.png", "growth.png", "splits.png", "models.png", "storage.png"]
    assert len({title for _, title, _ in images}) == len({png for _, _, png in images}) == 5
    assert all(png.startswith(PNG) for _, _, png in images)


def test_no_picture_of_what_was_not_measured():
    assert list(pictures(Record(dict(MACHINE)))) == []
    assert list(pictures(run())) == []


@pytest.mark.parametrize(
    ("measured", "relation", "verdict"),
    [
        (2.0, "at least", "kept"),
        (1.9, "at least", "BROKEN"),
        (2.0, "at most", "kept"),
        (2.1, "at most", "BROKEN"),
        (nan, "at most", "not measured"),
        (nan, "at least", "not measured"),
    ],
)
def test_promises_are_kept_broken_or_not_measured(measured, relation, verdict):
    assert Promise("something", measured, relation, 2).row()[2:] == [f"{relation} 2", verdict]


def test_promises_are_held_to_what_was_measured():
    assert {each.verdict for each in promises(Record(dict(MACHINE)))} == {"not measured"}
    large = flat(10_000_000)
    record = Record(dict(MACHINE), [timed("limit, float32", large), timed("fastadam", large, speed=0.25)])
    record.results.append(timed("NumPy, textbook", large, speed=0.0625))
    found = {each.text: each.measured for each in promises(record) if each.measured == each.measured}
    share, speed = found
    assert list(found.values()) == pytest.approx([0.25, 4.0])
    assert "share of the limit" in share
    assert "NumPy, textbook" in speed


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5.934e-7, "593 ns"), (9.996e-7, "1.0 us"), (1.2345e-5, "12.3 us"), (0.0123456, "12.35 ms"), (72.345, "72.34 s")],
)
def test_durations_have_the_unit_that_suits_them(seconds, text):
    assert duration(seconds) == text


TEXT = """Before.
<!-- some (name): written by `make` -->
old

lines
<!-- end of some (name) -->
<!-- other: written by `make` -->
kept
<!-- end of other -->
"""


def test_lines_between_marks_are_replaced():
    lines = [r"new \1 \g<1>", "| a | b |"]
    wanted = TEXT.replace("old\n\nlines\n", f"\n{lines[0]}\n{lines[1]}\n\n")
    replaced = marked.between(TEXT, "some (name)", lines)
    assert replaced == wanted
    assert marked.between(replaced, "some (name)", lines) == replaced


@pytest.mark.parametrize("text", ["", TEXT + TEXT, TEXT.replace("end of some", "end of")])
def test_a_page_without_the_marks_is_refused(text):
    with pytest.raises(ValueError, match=r"must have the marks of 'some \(name\)' once, has them [02] times"):
        marked.between(text, "some (name)", ["new"])
