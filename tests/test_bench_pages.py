"""What is made of a record: Markdown, a page, pictures, promises."""

import re
from html.parser import HTMLParser
from math import nan

import publish
import pytest
import run_tables
from bench_records import MACHINE, result, run
from promises import PROMISES, Promise

from fastadam.bench.pictures import pictures
from fastadam.bench.record import Record, RecordError, Result, read_record
from fastadam.bench.registry import CONTENDERS
from fastadam.bench.report import to_html
from fastadam.bench.tables import COLUMNS, duration, to_markdown
from fastadam.bench.workloads import MLP, RESNET50, SPLITS, flat

NAMES = ["NumPy, textbook", "fastadam, step(grads)", "fastadam", "limit, float32", "memory, copy"]
OURS = ("fastadam", "limit, float32")
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
        self.open, self.attributes, self.titles, self.tags, self.text = [], [], [], set(), ""
        self.feed(text)
        self.close()
        assert self.open == []
        self.lines = [" ".join(line.split()) for line in self.text.splitlines()]

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


NAUGHTY = """<script>alert("1")</script> & 'co'"""


def test_the_page_has_a_row_for_each_result_and_escapes_names():
    record = run()
    record.results.append(result(NAUGHTY, [1e-3]))
    record.missing[NAUGHTY] = record.machine["processor"] = NAUGHTY
    record.tables[NAUGHTY] = {NAUGHTY: {NAUGHTY: 1.0}}
    page = Page(to_html(record, [("some.png", NAUGHTY, PNG)], NAUGHTY))
    assert "fastadam 4.0 us 3.9 to 4.1 0.400 70.0 0.50 250.00" in page.lines
    for name in (*NAMES, NAUGHTY):
        assert any(re.match(rf"{re.escape(name)} [0-9.]+ [mu]s ", line) for line in page.lines), name
    for line in ("flat 10,000, plain step", "First call", " ".join(COLUMNS), NAUGHTY, f"{NAUGHTY} 1.00 s"):
        assert line in page.lines
    assert any(line.startswith("Missing, optax not installed: optax, jit") for line in page.lines)
    assert ("img", "alt", NAUGHTY) in page.attributes
    assert "script" not in page.tags
    assert "".join(page.titles) == NAUGHTY
    text = " ".join(page.text.split())
    assert f"2026-01-02: {NAUGHTY}, 256 bits, 3 of 4 threads (omp); fastadam 0.1.0" in text


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
    promise = Promise("something", lambda record: measured, relation, 2)
    assert promise.row(Record({}))[2:] == [f"{relation} 2", verdict]


def test_promises_are_held_to_what_was_measured():
    assert {promise.row(Record(dict(MACHINE)))[-1] for promise in PROMISES} == {"not measured"}
    large = flat(10_000_000)
    record = Record(dict(MACHINE), [timed("limit, float32", large), timed("fastadam", large, speed=0.25)])
    record.results.append(timed("NumPy, textbook", large, speed=0.0625))
    measured = {promise.text: promise.figure(record) for promise in PROMISES}
    found = {text: value for text, value in measured.items() if value == value}
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
    replaced = publish.between(TEXT, "some (name)", lines)
    assert replaced == wanted
    assert publish.between(replaced, "some (name)", lines) == replaced


@pytest.mark.parametrize("text", ["", TEXT + TEXT, TEXT.replace("end of some", "end of")])
def test_a_page_without_the_marks_is_refused(text):
    with pytest.raises(ValueError, match=r"must have the marks of 'some \(name\)' once, has them [02] times"):
        publish.between(text, "some (name)", ["new"])


@pytest.fixture(scope="module")
def saved():
    return read_record(publish.DOCS / "benchmark.json")


def test_tables_are_those_of_the_saved_run(saved):
    for page, text in publish.pages(saved).items():
        assert text == (publish.DOCS.parent / page).read_text(encoding="utf-8"), page


def test_every_promise_was_kept_in_the_saved_run(saved):
    assert {promise.row(saved)[-1] for promise in PROMISES} == {"kept"}


def test_a_table_about_fastadam_has_a_column_for_each_workload():
    record = Record(dict(MACHINE), [timed(name, workload, "calls") for workload in (flat(100), MLP) for name in OURS])
    record.results.append(timed("kernel alone", flat(100), "calls"))
    head, _, *rows = run_tables.calls(record, "calls")
    assert head == "| costs of a call | flat 100 | MLP, 6 tensors |"
    assert [row.split(" | ")[0] for row in rows] == ["| fastadam", "| kernel alone"]
    assert rows[1].endswith("| - |")


def test_a_run_that_is_not_one_of_the_full_suite_is_not_published():
    with pytest.raises(RecordError, match="must be one of the full suite, but has no"):
        publish.pages(run())
