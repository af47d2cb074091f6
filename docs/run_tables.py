"""The tables of a saved run, as lines of Markdown."""

from promises import FUSED, LOOP, MAPPING, OURS

from fastadam.bench.layouts import FORMATS, KINDS
from fastadam.bench.record import Record, RecordError, Result
from fastadam.bench.tables import duration, markdown_table, number, other_tables
from fastadam.bench.workloads import GPT2, SPLITS, flat

LYING = "fastadam, where they lie"
FLOAT32 = (MAPPING, OURS, f"{LYING}, step(grads)", LYING, "limit, float32")


def compared(record: Record, kind: str, workloads, without=()) -> list[str]:
    """A row for each contender in float32, `without` some: the time of a step, and its ratio to that of fastadam."""
    found: dict[str, dict[str, Result]] = {workload.name: {} for workload in workloads}
    for result in record.results:
        if result.kind == kind and result.workload in found and result.contender not in without:
            found[result.workload][result.contender] = result
    names = list(dict.fromkeys(name for results in found.values() for name in results))
    rows = []
    for name in [name for name in names if name in FLOAT32 or not name.startswith(("fastadam", "limit", "memory"))]:
        cells = [_cell(results.get(name), _result(record, case, kind, OURS)) for case, results in found.items()]
        rows.append([f"**{name}**" if name == OURS else name, *cells])
    return markdown_table([f"time of a {kind} step", *found], rows)


def _cell(result, ours):
    return f"{duration(result.median)} ({result.median / ours.median:.2f})" if result else "-"


def _result(record, *names) -> Result:
    """A result that the pages cannot do without."""
    result = record.find(*names)
    if result is None:
        raise RecordError(f"the record must be one of the full suite, but has no {', '.join(names)}")
    return result


def calls(record: Record, kind: str) -> list[str]:
    """A row for each contender of a kind of cases about fastadam: the time of a step of each workload."""
    cases = [{result.contender: result for result in case} for case in record.cases() if case[0].kind == kind]
    names = dict.fromkeys(name for case in cases for name in case if not name.startswith("limit"))
    rows = [[name, *(duration(case[name].median) if name in case else "-" for case in cases)] for name in names]
    return markdown_table([KINDS[kind], *(next(iter(case.values())).workload for case in cases)], rows)


def other(record: Record, title: str) -> list[str]:
    """One of `Record.tables`."""
    for found, columns, rows in other_tables(record):
        if found == title:
            return markdown_table([title, *columns[1:]], rows)
    raise RecordError(f"the record must be one of the full suite, but has no {title}")


def extras(record: Record) -> list[str]:
    """What it costs to have one thing more in the step."""
    workload = flat(10_000_000).name
    plain = _result(record, workload, "extras", OURS)
    results = next(case for case in record.cases() if (case[0].workload, case[0].kind) == (workload, "extras"))
    rows = [
        [
            "Adam" if result is plain else result.contender.removeprefix("fastadam, "),
            str(result.bytes),
            f"{result.bytes / plain.bytes:.2f}",
            duration(result.median),
            f"{result.median / plain.median:.2f}",
            number(record.share_of_limit(result)),
        ]
        for result in results
        if not result.is_limit
    ]
    return markdown_table(["in the step", "bytes", "of plain", "time", "of plain", "of the limit"], rows)


def formats(record: Record) -> list[str]:
    """What a step takes in each storage format."""
    workload = flat(100_000_000).name
    torch = _result(record, workload, "plain", FUSED)
    rows = [[f"{FUSED}, float32", "28", "16", duration(torch.median), "1.00", number(record.share_of_limit(torch))]]
    for layout, stored in FORMATS.items():
        result = record.find(workload, "plain", OURS if layout == "float32" else f"fastadam, {layout}")
        if result:
            ratio, share = torch.median / result.median, record.share_of_limit(result)
            kept = f"{stored.kept + (stored.m == 1) * 2 / 128:.2f}"
            cells = [str(result.bytes), kept, duration(result.median), f"{ratio:.2f}", number(share)]
            rows.append([f"**{layout}**", *cells])
    columns = ["stored as", "bytes moved", "bytes kept", "time of a step", "times as fast as torch", "of the limit"]
    return markdown_table(columns, rows)


def growth(record: Record) -> list[str]:
    """Nanoseconds a parameter by size."""
    names = ["limit, float32", OURS, "fastadam, 1 thread", FUSED, "optax, jit"]
    rows = []
    for size in (10**decade for decade in range(2, 9)):
        results = [record.find(flat(size).name, "plain", name) for name in names]
        if any(results):
            cells = [f"{result.nanoseconds_a_parameter:.3f}" if result else "-" for result in results]
            rows.append([f"{size:,}", f"{28 * size / 1e6:,.4g} MB", *cells])
    return markdown_table(["parameters", "moved", *names], rows)


def splits(record: Record) -> list[str]:
    """The time of a step of 1,000,000 parameters in more and more tensors."""
    names = [OURS, "fastadam, step(grads)", FUSED, LOOP, "optax, jit"]
    rows = []
    for workload in SPLITS:
        results = [record.find(workload.name, "plain", name) for name in names]
        rows.append([f"{len(workload.shapes):,}", *(duration(result.median) if result else "-" for result in results)])
    return markdown_table(["tensors", *names], rows)


# Peak bandwidth by the data sheets in GB/s, and cores; 0 for GPUs.
MACHINES = {
    "server socket, 12 channels of DDR5-4800": (460.8, 96),
    "server socket, 8 channels of DDR4-3200": (204.8, 64),
    "H100 SXM, 80 GB of HBM3": (3_350.0, 0),
    "H100 PCIe, 80 GB of HBM2e": (2_000.0, 0),
}
SMALLEST = "bfloat16 p, g, 8-bit m, v"


def predictions(record: Record, arithmetic: dict, gpu: dict) -> list[str]:
    """The time that other machines should take, by bytes and bandwidth, below what was measured here and on a GPU."""
    sizes = {"GPT-2, 28 bytes": 28 * GPT2.size, "GPT-2, 10 bytes": 10 * GPT2.size, "1e9 parameters, 28 bytes": 28e9}
    here = _result(record, GPT2.name, "plain", "limit, float32").gigabytes_a_second
    found = [_result(record, GPT2.name, "plain", name) for name in (OURS, f"fastadam, {SMALLEST}")]
    rows = [
        ["this machine, **measured**", "-", *(duration(result.median) for result in found), "-", "-"],
        [f"{gpu['machine']['card']}, **measured**", "-", *_on_gpu(gpu), "-", "-"],
        ["this machine, at the limit's bandwidth", f"{here:.1f}", *_times(sizes, here), "-"],
    ]
    for name, (peak, cores) in MACHINES.items():
        seconds = 1e-9 * arithmetic["nanoseconds"][SMALLEST] * GPT2.size
        second = duration(seconds / cores) if cores else "-"
        bandwidth = 0.8 * peak
        rows.append([f"{name}, at 0.8 of {peak:,.1f} GB/s", f"{bandwidth:,.1f}", *_times(sizes, bandwidth), second])
    return markdown_table(["", "GB/s", *sizes, "arithmetic of GPT-2, 10 bytes"], rows)


def _on_gpu(gpu):
    times = gpu["counts"]["GPT-2"]
    return [duration(1e-12 * times[f"fastadam, {each}, step(grads)"] * GPT2.size) for each in ("float32", SMALLEST)]


def _times(sizes, bandwidth):
    return [duration(moved / bandwidth / 1e9) for moved in sizes.values()]


# What a core of Intel does in a cycle, by LLVM's model of Sapphire Rapids: vector operations of 256 bits, and elements
# of a float32 root and a division.
OPERATIONS, DIVIDED, GIGAHERTZ = 3, 8 / 11, 2.6


def second_bound(arithmetic: dict) -> list[str]:
    """What the arithmetic of each format takes on one core, measured in the cache and bounded by the machine code."""
    rows = []
    for layout, stored in FORMATS.items():
        here, intel, avx2 = (found[layout] for found in arithmetic["operations"].values())
        moved, nanoseconds = stored.moves("plain").total, arithmetic["nanoseconds"][layout]
        cycles = max(intel / OPERATIONS, 1 / DIVIDED)
        cells = [f"{nanoseconds:.2f}", f"{moved / nanoseconds:.0f}", *(f"{count:.2f}" for count in (here, intel, avx2))]
        rows.append([layout, str(moved), *cells, f"{cycles:.2f}", f"{cycles / GIGAHERTZ:.2f}"])
    columns = ["stored as", "bytes moved", "ns an element", "GB/s a core", "operations here", "Sapphire Rapids", "AVX2"]
    return markdown_table([*columns, "cycles at least on Sapphire Rapids", f"ns at {GIGAHERTZ} GHz"], rows)
