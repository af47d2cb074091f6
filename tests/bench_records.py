"""Records as a run makes them, for tests that need no run."""

from fastadam.bench.record import Record, Result

MACHINE = {
    "date": "2026-01-02",
    "processor": "Processor <of> & for tests",
    "vector width": "256 bits",
    "cores": 4,
    "threads": 3,
    "threading layer": "omp",
    "system": "Linux",
    "fastadam": "0.1.0",
    "Python": "3.12.1",
    "numpy": "2.3.4",
}


def result(contender, seconds, workload="flat 10,000", size=10_000, kind="plain", moved=28, limit="limit, float32"):
    return Result(workload, size, kind, contender, moved, limit, list(seconds))


def rounds(median, spread=0.01):
    """Five rounds whose quartiles lie 1.5 times `spread` below and above their median."""
    return [float(f"{median * (1 + spread * step):.5g}") for step in (0, 2, -1, 1, -2)]


def run(ours=1.0, machine=1.0, spread=0.01):
    """A run on which fastadam and all of it took so many times as long as usual."""
    seconds = {
        "NumPy, textbook": 40e-6 * machine,
        "fastadam, step(grads)": 5e-6 * machine * ours,
        "fastadam": 4e-6 * machine * ours,
        "limit, float32": 2e-6 * machine,
    }
    results = [result(name, rounds(median, spread)) for name, median in seconds.items()]
    results.append(result("memory, copy", rounds(3.2e-6 * machine, spread), moved=8, limit="memory, copy"))
    return Record(
        machine=dict(MACHINE),
        results=results,
        missing={"optax, jit": "optax not installed", "Keras": "keras not installed"},
        skipped=["MLP, full: numexpr needs 2.0 GB of memory, 1.0 GB are left"],
        left_out={"MLP, full": ["torch, compiled"]},
        tables={"First call": {"import": {"fastadam": 0.25, "torch": 1.5}, "memory": {"fastadam": 2e6}}},
    )
