"""The cases that are run, each a workload, a kind of step and contenders, and the record that they fill."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

from fastadam.bench.contender import Contender
from fastadam.bench.interleave import in_turns
from fastadam.bench.layouts import MEMORY, kept
from fastadam.bench.record import Record, Result
from fastadam.bench.registry import CONTENDERS
from fastadam.bench.workers import SETTLE, ContenderError, Workers
from fastadam.bench.workloads import GENERAL, GPT2, GROUPED, MLP, PAIR, RESNET50, TABLE, Workload, flat, tensors

# The contenders of the quick suite, which people would use.
QUICK = (
    "NumPy, textbook",
    "torch, loop",
    "torch, fused",
    "optax, jit",
    "fastadam, step(grads)",
    "fastadam",
    "fastadam, where they lie, step(grads)",
    "fastadam, bfloat16 m, v",
    "fastadam, bfloat16 p, g, 8-bit m, v",
)
# Contenders on fewer threads than there are.
THREADS = tuple(name for name, contender in CONTENDERS.items() if contender.thread_count and not contender.is_limit)
# The bandwidth of the memory, on flat workloads that do not fit into a cache.
BANDWIDTH = tuple(name for name, contender in CONTENDERS.items() if contender.layout in MEMORY)
BANDWIDTH_FROM = 10_000_000
# From this many parameters on, only these contenders are run. The others take seconds, or too much memory.
LARGE_FROM = 50_000_000
LARGE = (
    "torch, fused",
    "DeepSpeed CPUAdam",
    "optax, jit",
    "fastadam",
    "fastadam, where they lie",
    *THREADS,
    *BANDWIDTH,
    "fastadam, bfloat16 m, v",
    "fastadam, 8-bit m, v",
    "fastadam, bfloat16 p, g, m, v",
    "fastadam, bfloat16 p, g, 8-bit m, v",
    "fastadam, lazy rows",
    "fastadam, exact rows",
)
# Storage formats are for tables and models, not for what fits into the nearest cache.
STORED_FROM = 1_000_000
# The most tensors that a contender is given: it would compile more for minutes, or is not made for more.
MOST_TENSORS = {
    "torch, compiled": 200,
    "optax, jit": 1_000,
    "Keras": 1_000,
    "fastadam, adam_step": 10,
    "kernel alone": 1,
}
# Seconds after which a contender has had enough turns in a case.
PATIENCE = 5.0


class Case(NamedTuple):
    """A workload stepped in one way by several contenders, in turns; some may be left out where they make no sense."""

    workload: Workload
    kind: str
    contenders: tuple[str, ...]
    rounds: int
    left_out: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.workload.name}, {self.kind}"

    @property
    def with_limits(self) -> tuple[str, ...]:
        """The contenders, and the limit of each."""
        return tuple(dict.fromkeys([*self.contenders, *(CONTENDERS[name].limit for name in self.contenders)]))


def quick_cases() -> list[Case]:
    """The cases of the quick suite, which takes less than three minutes on two cores."""
    plain = ((flat(100), 51), (MLP, 51), (flat(1_000_000), 31), (flat(10_000_000), 15), (RESNET50, 9))
    cases = [(workload, "plain", rounds) for workload, rounds in plain]
    cases += [(MLP, "full", 51), (flat(10_000_000), "full", 15)]
    return [_case(workload, kind, (*QUICK, *BANDWIDTH), rounds) for workload, kind, rounds in cases]


def full_cases() -> list[Case]:
    """Every contender on every workload, in every way that it takes."""
    names = [name for name, contender in CONTENDERS.items() if not contender.is_limit or name in BANDWIDTH]
    kinds = {
        "plain": GENERAL,
        "clip": (MLP, flat(10_000_000), RESNET50),
        "full": (MLP, flat(10_000_000), RESNET50, GPT2),
        "extras": (flat(10_000_000),),
        "calls": (PAIR, flat(100), MLP, tensors(10_000, 1_000_000)),
        "groups": GROUPED,
        "rows": (TABLE,),
    }
    return [
        _case(workload, kind, names, _rounds(workload)) for kind, workloads in kinds.items() for workload in workloads
    ]


def _rounds(workload):
    return 101 if workload.size < 100_000 else 31 if workload.size < 30_000_000 else 11


def _case(workload, kind, names, rounds):
    able = [name for name in names if kind in CONTENDERS[name].kinds]
    if not workload.name.startswith("flat"):
        able = [name for name in able if name not in (*THREADS, *BANDWIDTH)]
    if workload.size < BANDWIDTH_FROM:
        able = [name for name in able if name not in BANDWIDTH]
    chosen = tuple(name for name in able if _makes_sense(name, workload))
    return Case(workload, kind, chosen, rounds, tuple(name for name in able if name not in chosen))


def _makes_sense(name, workload):
    if workload.size >= LARGE_FROM and name not in LARGE and CONTENDERS[name].device == "cpu":
        return False
    if workload.size < STORED_FROM and CONTENDERS[name].rotates:
        return False
    return len(workload.shapes) <= MOST_TENSORS.get(name, len(workload.shapes))


def memory_needed(contender: Contender, case: Case) -> int:
    """Bytes that a contender keeps between its steps; the full step keeps an average and another set of gradients."""
    return case.workload.size * (kept(contender.layout) + 8 * (case.kind == "full"))


def memory_reserved(case: Case) -> int:
    """Bytes to leave for a contender that is being built, or whose step makes temporaries."""
    return 1_000_000_000 + 32 * case.workload.size


def run_case(workers: Workers, case: Case, record: Record, progress: Callable[[], None] = lambda: None) -> None:
    """Run a case and add to `record`: results, or lines that say what was skipped and why."""
    names = _there(case, record)
    with workers.at_work(names, case.workload, case.kind) as (turns, failed):
        record.failed += [f"{case.title}: {name}: {why}" for name, why in failed.items()]
        results = {name: Result.of(CONTENDERS[name], case.workload, case.kind) for name in turns}
        try:
            for name, seconds in in_turns(turns, case.rounds, pause=SETTLE, patience=PATIENCE):
                results[name].seconds.append(seconds)
                progress()
        except ContenderError as error:
            record.failed.append(f"{case.title}: broke off: {error}")
        finally:
            record.results += [result for result in results.values() if result.seconds]


def _there(case, record):
    """The contenders of a case that can take part in it, in its order; `record` notes the others."""
    there, free = [], memory_free() - memory_reserved(case)
    if case.left_out:
        record.left_out[case.title] = list(case.left_out)
    # Memory for the limits is set aside first: without them the rest says less. They share one set of buffers.
    free -= max(memory_needed(CONTENDERS[name], case) for name in case.with_limits)
    for name in case.with_limits:
        contender = CONTENDERS[name]
        problem, need = contender.missing(), memory_needed(contender, case)
        more = 0 if contender.is_limit else need
        if problem:
            record.missing[name] = problem
        elif more > free:
            record.skipped.append(
                f"{case.title}: {name} needs {_gigabytes(need)} of memory, {_gigabytes(free)} are left"
            )
        else:
            free -= more
            there.append(name)
    return there


def _gigabytes(count):
    return f"{max(0, count) / 1e9:.1f} GB"


def memory_free() -> int:
    """Bytes that can be allocated."""
    return min(psutil.virtual_memory().available, _memory_of_container())


def _memory_of_container():
    """Bytes that the control group of this process may still take, if it has a limit."""
    most, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if not most.exists() or most.read_text().strip() == "max":
        return 1 << 62
    return int(most.read_text()) - int(used.read_text())
