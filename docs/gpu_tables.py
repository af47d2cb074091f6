"""The tables of docs/gpu.md, from the JSON of a GPU day."""

from collections.abc import Mapping
from typing import Any

from promises import COLUMNS, NAN, Promise

from fastadam.bench.layouts import moves
from fastadam.bench.tables import markdown_table, number

FLOAT32, FUSED, COPY, LARGEST, MODEL = "fastadam, float32", "torch, fused", "copy", "100,000,000", "GPT-2"
_COPIED = 8  # bytes an element
NOT_MEASURED = "not measured"
TIMES = ("flat", "counts", "host", "torch_steps")
SEQUENCE = f"{MODEL}, full sequence"


def blocks(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """Name of a block of the page -> its lines."""
    found = {part: without_errors(values) if part in TIMES else values for part, values in found.items()}
    return {
        "machine": [machine(found)],
        "checks": markdown_table(("what was run on it", "result"), checks(found)),
        "flat": flat(found),
        "counts": columns(
            found.get("counts", {}), "picoseconds an element", (MODEL, "150 tensors", "1,000 tensors"), 2
        ),
        "host": [*columns(found.get("host", {}), "microseconds of the host", ("1", "148", "1,000"), 1), *note(found)],
        "torch": torch_host(found.get("torch_steps", {})),
        "sequence": torch_device(found.get("torch_steps", {})),
        "promises": promised(found),
    }


def promised(found: Mapping[str, Any]) -> list[str]:
    """What is promised, and what a day has measured."""
    return markdown_table(COLUMNS, [each.row(found) for each in PROMISES])


def without_errors(cases: Mapping[str, Any]) -> dict[str, Any]:
    """The cases that were measured."""
    return {name: times for name, times in cases.items() if isinstance(times, dict) and "error" not in times}


def machine(found: Mapping[str, Any]) -> str:
    """When it was measured, and on what."""
    facts = dict(found["machine"])
    first = ("date", "card", "compute capability")
    listed = ", ".join(f"{name} {value}" for name, value in facts.items() if name not in first)
    return f"{facts['date']}: {facts['card']}, compute capability {facts.get('compute capability', '?')}; {listed}."


def note(found: Mapping[str, Any]) -> list[str]:
    """What is to be said of the times of the host."""
    return ["", found["note"]] if "note" in found else []


def checks(found: Mapping[str, Any]) -> list[list[str]]:
    """A row for each thing that is right or wrong."""
    rows = []
    for part, name, text in (
        ("tests", "gpu", "tests that need a GPU"),
        ("sanitizer", "memcheck", "some of them under compute-sanitizer, memcheck"),
    ):
        rows.append([text, _counted(found.get(part, {}).get(name))])
    for name, value in found.get("graphs", {}).items():
        rows.append([f"captured by `torch.cuda.graph`: {name}", _outcome(value)])
    for name, value in found.get("adapter", {}).items():
        rows.append([f"fastadam.torch beside itself on the CPU: {name}", _outcome(value)])
    for name, text in (
        ("side stream", "20 steps on a side stream of torch"),
        ("host ahead", "40 steps under way at once"),
    ):
        rows.append([text, _outcome(found.get("streams", {}).get(name))])
    for name, value in found.get("memory", {}).items():
        allocated = f"{value} bytes" if isinstance(value, int) else "an error"
        rows.append([f"device memory that 6 steps allocate: {name}", allocated])
    for name, value in found.get("smallest", {}).items():
        rows.append([f"numbers at and below the smallest normal one, {name}", _outcome(value)])
    for name, value in found.get("kernels", {}).items():
        rows.append([f"kernel of the step, {name}", _taken(value, "registers", "local bytes", "occupancy")])
    for name, value in _formats(found.get("ncu", {}).get("formats", {})).items():
        rows.append([f"an element by ncu, {name}", _taken(value, "bytes read", "bytes written", "instructions")])
    return rows


def _formats(counted):
    """What was counted of each format; of all of them, why nothing was."""
    return {"all": counted} if "not run" in counted or "error" in counted else counted


def _taken(value, *names):
    if "not run" in value:
        return " ".join(value["not run"].split()).replace("|", "/")
    return "an error" if "error" in value else ", ".join(f"{name} {value[name]}" for name in names if name in value)


def _counted(tests):
    if tests is None:
        return NOT_MEASURED
    if "passed" not in tests:
        return tests.get("not run", "an error")
    return f"{tests['passed']} of {tests['tests']} passed" + f", {tests['skipped']} skipped" * bool(tests["skipped"])


def _outcome(value):
    if value is None:
        return NOT_MEASURED
    if "says" in value:
        return f"refused: “{value['says'].partition(':')[0]}”"
    if "error" in value:
        return "an error"
    return "equal" if value["equal"] else "NOT EQUAL"


def flat(found: Mapping[str, Any]) -> list[str]:
    """A row for each step of one flat array: ps an element by size, and what becomes of the largest."""
    sizes = found.get("flat", {})
    largest = sizes.get(LARGEST, {})
    rows = []
    for name in dict.fromkeys(name for times in sizes.values() for name in times):
        cells = [_cell(times.get(name), 2) for times in sizes.values()]
        faster = largest.get(FUSED, NAN) / largest.get(name, NAN) if name != COPY else NAN
        rows.append(
            [name, number(bytes_of(name)).removesuffix(".00"), *cells, number(share(largest, name)), number(faster)]
        )
    return markdown_table(
        ["picoseconds an element", "bytes", *sizes, "bandwidth, of the copy's", "times as fast as torch"], rows
    )


def bytes_of(name: str) -> float:
    """Bytes of an element that a step has to move."""
    if name == COPY:
        return _COPIED
    kind = "clip" if "clipped" in name else "plain"
    if name.startswith("torch"):
        return moves("bfloat16 p, g, m, v" if "bfloat16" in name else "float32", kind).total
    layout = name.removeprefix("fastadam, ").partition(", clipped")[0].partition(", step(")[0].partition(", flat=")[0]
    return moves(layout, kind).total


def share(times: Mapping[str, float], name: str) -> float:
    """The bandwidth of a step in that of a copy of as many elements."""
    if name not in times or COPY not in times:
        return NAN
    return bytes_of(name) / times[name] / (_COPIED / times[COPY])


def columns(cases: Mapping[str, Mapping[str, float]], title: str, wanted: tuple[str, ...], digits: int) -> list[str]:
    """A row for each name and a column for each case."""
    here = [case for case in wanted if case in cases]
    names = dict.fromkeys(name for case in here for name in cases[case])
    heads = [
        f"{case} tensor{'s' * (case != '1')}" if case[0].isdigit() and "tensors" not in case else case for case in here
    ]
    return markdown_table(
        [title, *heads], [[name, *(_cell(cases[case].get(name), digits) for case in here)] for name in names]
    )


def torch_host(cases: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What a step of an optimizer of torch's parameters takes the host."""
    return columns(cases, "microseconds of the host", ("6", "148", "1,000"), 1)


def torch_device(cases: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What a step, and all that goes around it, takes the device, beside torch's."""
    rows = []
    for case in (MODEL, SEQUENCE):
        times = cases.get(case, {})
        what = "step" if case == MODEL else "unscale, check, clip, step, average, zero"
        for name, value in times.items():
            rows.append([what, name, _cell(value, 2), number(times.get(FUSED, NAN) / value)])
    return markdown_table(("what", "by", "picoseconds an element", "times as fast"), rows)


def _cell(value, digits):
    return "-" if value is None else f"{value:.{digits}f}"


def _time(part, case, name):
    return lambda found: found.get(part, {}).get(case, {}).get(name, NAN)


def _faster(case, part, name):
    def figure(found):
        times = found.get(part, {}).get(case, {})
        return times.get(FUSED, NAN) / times.get(name, NAN)

    return figure


PROMISES = (
    Promise(
        "bandwidth of a step in float32, of that of a copy, 100,000,000 elements",
        lambda found: share(found.get("flat", {}).get(LARGEST, {}), FLOAT32),
        "at least",
        0.92,
    ),
    Promise(
        "times as fast as torch, fused, in float32, 100,000,000 elements",
        _faster(LARGEST, "flat", FLOAT32),
        "at least",
        1,
    ),
    Promise("the same for GPT-2's tensors", _faster(MODEL, "counts", f"{FLOAT32}, step(grads)"), "at least", 1),
    Promise(
        "the same with moments in bfloat16",
        _faster(MODEL, "counts", "fastadam, bfloat16 m, v, step(grads)"),
        "at least",
        1.3,
    ),
    Promise(
        "the same with moments in 8 bits",
        _faster(MODEL, "counts", "fastadam, 8-bit m, v, step(grads)"),
        "at least",
        1.5,
    ),
    Promise(
        "times as fast as torch, fused, `fastadam.torch` for GPT-2's tensors",
        _faster(MODEL, "torch_steps", "fastadam.torch, float32"),
        "at least",
        1,
    ),
    Promise(
        "the same with unscaling, clipping, averaging and zeroing",
        _faster(SEQUENCE, "torch_steps", "fastadam.torch, fastadam.torch.GradScaler"),
        "at least",
        1.3,
    ),
    Promise(
        "microseconds of the host, gradients written, 148 tensors",
        _time("host", "148", "plain, written"),
        "at most",
        20,
    ),
    Promise(
        "microseconds of the host, step(grads) of the same 148 arrays",
        _time("host", "148", "plain, step(grads)"),
        "at most",
        300,
    ),
)
