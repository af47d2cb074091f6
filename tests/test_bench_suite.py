"""Turns, the processes that take them, and cases: what of them is on record whatever happens."""

import gc
from contextlib import contextmanager
from itertools import count

import pytest

from fastadam.bench import interleave as interleave_module
from fastadam.bench import suite, workers
from fastadam.bench.interleave import in_turns, interleave, timed
from fastadam.bench.record import Record
from fastadam.bench.registry import CONTENDERS
from fastadam.bench.suite import Case, run_case
from fastadam.bench.workers import Workers
from fastadam.bench.workloads import GPT2, MLP, flat

TEXTBOOK, LIMIT = "NumPy, textbook", "limit, float32"
ENDED = "its process ended, for want of memory perhaps"


class Clock:
    """A clock that goes on where it is told to."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(interleave_module, "perf_counter", lambda: self.now)

    def takes(self, name, seconds):
        """A function that takes so long."""

        def call():
            self.calls.append(name)
            self.now += seconds

        return call


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_contenders_take_turns():
    calls = []
    times = interleave({name: timed(lambda name=name: calls.append(name)) for name in "ab"}, 3, turn_seconds=0)
    assert [len(rounds) for rounds in times.values()] == [3, 3]
    rounds = ["".join(calls[start : start + 4]) for start in range(0, 16, 4)]
    # In an order that changes; each turn has a call to warm up.
    assert rounds[0] == "aabb"
    assert set(rounds) == {"aabb", "bbaa"}


def test_a_turn_takes_the_mean_of_its_calls_without_the_first_and_without_what_is_prepared(clock):
    seconds = iter([100.0, 1.0, 2.0, 6.0])

    def call():
        clock.calls.append("call")
        clock.now += next(seconds)

    assert timed(call, clock.takes("prepare", 1_000.0))(3) == 3.0
    assert clock.calls == ["call", "prepare", "call", "call", "call"]


def test_a_turn_has_as_many_calls_as_fill_it(clock):
    turns = {"quick": timed(clock.takes("quick", 0.25)), "slow": timed(clock.takes("slow", 30.0))}
    assert sorted(in_turns(turns, 2, turn_seconds=2.0)) == 2 * [("quick", 0.25)] + 2 * [("slow", 30.0)]
    # One to warm up before each.
    assert (clock.calls.count("quick"), clock.calls.count("slow")) == (2 + 2 * 9, 2 + 2 * 2)


def test_who_has_used_up_the_patience_has_five_turns(clock):
    turns = {"quick": timed(clock.takes("quick", 0.25)), "slow": timed(clock.takes("slow", 30.0))}
    taken = [name for name, _ in in_turns(turns, 8, patience=100.0)]
    assert (taken.count("quick"), taken.count("slow")) == (8, 5)


def test_garbage_is_collected_again_after_a_call_that_fails():
    calls = iter([1, 0])
    with pytest.raises(ZeroDivisionError):
        timed(lambda: 1 / next(calls))(1)
    assert gc.isenabled()


def test_a_turn_that_is_prepared_has_fifty_calls_at_most(clock):
    timed(clock.takes("call", 1.0), clock.takes("prepare", 1.0))(1_000)
    assert (clock.calls.count("call"), clock.calls.count("prepare")) == (51, 1)
    timed(clock.takes("other call", 1.0))(1_000)
    assert clock.calls.count("other call") == 1_001


@pytest.fixture(scope="module")
def processes():
    with Workers() as workers:
        yield workers


def kill(processes):
    """End the process of contenders on Numba's threads."""
    process = processes._workers["Numba"].process
    process.kill()
    process.join()
    return process.pid


def check_complete(processes, case):
    record = Record({})
    run_case(processes, case, record)
    assert [(each.contender, len(each.seconds)) for each in record.results] == [
        (name, case.rounds) for name in case.with_limits
    ]
    assert all(seconds > 0 for each in record.results for seconds in each.seconds)
    assert (record.failed, record.skipped, record.missing) == ([], [], {})


def test_a_case_has_a_result_for_each_contender_and_its_limit(processes):
    case = Case(flat(100), "plain", (TEXTBOOK, "fastadam"), rounds=4)
    assert case.with_limits == (TEXTBOOK, "fastadam", LIMIT)
    check_complete(processes, case)


def test_results_so_far_are_kept_where_a_process_ends(processes):
    case = Case(flat(100), "plain", (TEXTBOOK,), rounds=5)
    record, turns = Record({}), count(1)
    run_case(processes, case, record, lambda: next(turns) == 3 and kill(processes))
    assert [each.contender for each in record.results] == [TEXTBOOK, LIMIT]
    assert sum(len(each.seconds) for each in record.results) == 3
    assert record.failed == [f"flat 100, plain: broke off: {ENDED}"]
    check_complete(processes, case)


def test_a_process_that_ended_between_cases_is_replaced_after_one(processes):
    case = Case(MLP, "plain", (TEXTBOOK,), rounds=2)
    check_complete(processes, case)
    ended, record = kill(processes), Record({})
    run_case(processes, case, record)
    assert record.failed == [f"{case.title}: {name}: {ENDED}" for name in (TEXTBOOK, LIMIT)]
    assert record.results == []
    check_complete(processes, case)
    assert processes._workers["Numba"].process.pid != ended


def test_a_contender_that_cannot_be_built_is_skipped_and_the_others_run(processes, monkeypatch):
    # Known here, and not in the process that is to build it.
    monkeypatch.setitem(CONTENDERS, "unknown there", CONTENDERS[TEXTBOOK]._replace(name="unknown there"))
    record = Record({})
    run_case(processes, Case(flat(100), "plain", ("unknown there", TEXTBOOK), rounds=2), record)
    assert [each.contender for each in record.results] == [TEXTBOOK, LIMIT]
    assert record.failed == ["flat 100, plain: unknown there: KeyError: 'unknown there'"]


def test_processes_end_with_the_block():
    with Workers() as processes, processes.at_work([TEXTBOOK], flat(100), "plain") as (turns, failed):
        assert turns[TEXTBOOK](1) > 0
        assert failed == {}
        (worker,) = processes._workers.values()
        assert worker.process.is_alive()
    assert not worker.process.is_alive()


class NoWorkers:
    """Builds nothing, and remembers what it was asked to build."""

    asked = ()

    @contextmanager
    def at_work(self, names, workload, kind):
        self.asked = tuple(names)
        yield {}, {}


def test_where_there_is_no_memory_nothing_is_built_and_each_line_says_how_much_is_needed(monkeypatch):
    monkeypatch.setattr(suite, "memory_free", lambda: 1_000_000_000)
    monkeypatch.setattr(workers, "_Worker", lambda: pytest.fail("a process was started"))
    names, record = (TEXTBOOK, "fastadam", "fastadam, 8-bit m, v"), Record({})
    with Workers() as processes:
        run_case(processes, Case(GPT2, "plain", names, rounds=3), record)
    assert record.results == []
    for name, gigabytes in zip(names, ("2.0", "2.0", "1.2"), strict=True):
        line = f"{GPT2.name}, plain: {name} needs {gigabytes} GB of memory, 0.0 GB are left"
        assert line in record.skipped
    assert len(record.skipped) == len(names) + 2


def test_contenders_take_part_as_long_as_there_is_memory(monkeypatch):
    case = Case(flat(100_000_000), "plain", (TEXTBOOK, "fastadam", "fastadam, 8-bit m, v"), rounds=3)
    needed = 16 * case.workload.size
    # The limits' share, the first contender's, and not all of the second's.
    monkeypatch.setattr(suite, "memory_free", lambda: suite.memory_reserved(case) + 2 * needed + needed // 2)
    record, none = Record({}), NoWorkers()
    run_case(none, case, record)
    assert none.asked == (TEXTBOOK, LIMIT, "limit, 8-bit m, v")
    assert record.skipped == [
        f"{case.title}: fastadam needs 1.6 GB of memory, 0.8 GB are left",
        f"{case.title}: fastadam, 8-bit m, v needs 1.0 GB of memory, 0.8 GB are left",
    ]


def test_a_contender_whose_package_is_missing_is_listed(monkeypatch):
    needs = ("numpy", "no_such_package", "nor_this_one")
    monkeypatch.setitem(CONTENDERS, "of others", CONTENDERS[TEXTBOOK]._replace(name="of others", needs=needs))
    record, none = Record({}), NoWorkers()
    run_case(none, Case(MLP, "plain", ("of others", TEXTBOOK), rounds=3), record)
    assert record.missing == {"of others": "no_such_package, nor_this_one not installed"}
    assert (none.asked, record.skipped) == ((TEXTBOOK, LIMIT), [])


def test_what_a_case_leaves_out_is_on_record():
    record = Record({})
    run_case(NoWorkers(), Case(MLP, "plain", (TEXTBOOK,), rounds=3, left_out=("Keras", "numexpr")), record)
    assert (record.left_out, record.skipped) == ({f"{MLP.name}, plain": ["Keras", "numexpr"]}, [])
