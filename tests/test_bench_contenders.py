"""Contenders: right where they are timed, beside limits that move the same bytes; workloads of known sizes."""

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numba
import numpy as np
import pytest

import fastadam
from fastadam.bench import bandwidth, registry
from fastadam.bench.build import COMPARED, build
from fastadam.bench.contender import Built, rate
from fastadam.bench.contenders import fastadam_calls, fastadam_groups, limits
from fastadam.bench.contenders.fastadam_adam import packed
from fastadam.bench.layouts import moves
from fastadam.bench.registry import CONTENDERS
from fastadam.bench.workloads import GPT2, GROUPED, MLP, PAIR, RESNET50, TABLE, WORKLOADS, Workload, flat, tensors

# Their kernels are compiled, for minutes where nothing is cached.
TOO_SLOW = ("torch, compiled", "DeepSpeed CPUAdam", "DeepSpeed CPUAdam, offloaded")
INSTALLED = [name for name, contender in CONTENDERS.items() if not contender.missing() and name not in TOO_SLOW]
LIMITS = [name for name in INSTALLED if CONTENDERS[name].is_limit and CONTENDERS[name].device == "cpu"]


@pytest.fixture(autouse=True)
def threads():
    """Numba's number of threads is as it was, after a contender that has changed it."""
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


def kinds_of(names):
    return pytest.mark.parametrize(
        ("name", "kind"), [(name, kind) for name in names for kind in CONTENDERS[name].kinds]
    )


def table(rows):
    return Workload("some table", {"table": (rows, 64)}, some_rows=True)


@kinds_of(name for name in INSTALLED if name not in LIMITS)
def test_every_contender_gives_the_right_parameters(name, kind):
    build(name, table(400) if kind == "rows" else flat(100) if name == "kernel alone" else MLP, kind).step()


@kinds_of(name for name in INSTALLED if name.startswith("fastadam") and CONTENDERS[name].device == "cpu")
def test_kernels_on_all_threads_give_the_right_parameters(name, kind):
    workload = {"rows": table(100_000), "groups": tensors(2, 80_000)}.get(kind, flat(40_000))
    build(name, workload, kind).step()


# Of one kind: its kernel is compiled in every process.
@pytest.mark.parametrize("workload", [MLP, flat(40_000)], ids=lambda workload: workload.name)
@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_can_be_compiled(name, workload):
    build(name, workload, CONTENDERS[name].kinds[-1]).step()


def check_refused(monkeypatch, wrong, workload=MLP, like="fastadam", reason="wrong one", kind="plain"):
    monkeypatch.setitem(CONTENDERS, "wrong one", CONTENDERS[like]._replace(name="wrong one", build=wrong))
    with pytest.raises(AssertionError, match=reason):
        build("wrong one", workload, kind)


def other_learning_rate(params, grads, kind):
    optimizer = fastadam.Adam(params, lr=1.02e-3)
    return Built(lambda: optimizer.step(grads), lambda: params, grads.update)


def other_gradient(params, grads, kind):
    built = CONTENDERS["fastadam, step(grads)"].build(params, grads, kind)
    return built._replace(feed=lambda others: built.feed({**others, "b3": -others["b3"]}))


def one_rate(params, grads, kind):
    return CONTENDERS["fastadam, one group"].build(params, grads, kind)


def test_a_group_with_the_rate_of_another_is_not_timed(monkeypatch):
    check_refused(monkeypatch, one_rate, like="fastadam, a group each", kind="groups")


def other_row(params, grads, kind):
    built = CONTENDERS["fastadam, lazy rows"].build(params, grads, kind)
    return built._replace(feed=lambda others: built.feed({"table": np.roll(others["table"], 1, axis=0)}))


def test_a_step_of_other_rows_is_not_timed(monkeypatch):
    check_refused(monkeypatch, other_row, table(400), "fastadam, lazy rows", kind="rows")


@pytest.mark.parametrize("mode", ["lazy", "exact"])
def test_rows_are_timed_after_all_of_them_have_been_stepped(mode):
    workload, name = table(400), f"fastadam, {mode} rows"
    params, start = workload.random(seed=0), workload.random(seed=0)
    built = CONTENDERS[name].build(params, workload.gradients(seed=1), "rows")
    built.step()
    moved = np.flatnonzero((params["table"] != start["table"]).any(axis=1))
    assert moved.tolist() == [0, 1, 398, 399]
    built.settle()
    assert (built.params()["table"] != start["table"]).any(axis=1).all()
    before = built.params()["table"].copy()
    built.step()
    moved = np.flatnonzero((built.params()["table"] != before).any(axis=1))
    assert len(moved) == 4
    assert moved.tolist() != [0, 1, 398, 399]


def test_rates_are_others_at_each_step_once_they_are_timed(monkeypatch):
    optimizers = []

    def kept(*arguments, **options):
        optimizers.append(packed(*arguments, **options))
        return optimizers[-1]

    monkeypatch.setattr(fastadam_groups, "packed", kept)
    built = build("fastadam, rates assigned", MLP, "groups")
    rates = []
    for _ in range(3):
        built.step()
        rates.append([group["lr"] for group in optimizers[0].param_groups])
    first, second, third = rates
    assert first == third == [2 * lr for lr in second] == [2 * rate(index) for index in range(6)]


def test_new_arrays_are_others_at_each_step(monkeypatch):
    seen, make = [], fastadam_calls.lying

    def watched(params):
        optimizer = make(params)
        step = optimizer.step
        return SimpleNamespace(
            step=lambda grads: (seen.append({n: g.ctypes.data for n, g in grads.items()}), step(grads))
        )

    monkeypatch.setattr(fastadam_calls, "lying", watched)
    build("fastadam, where they lie, new arrays", MLP, "calls")
    assert len(seen) == 3
    for one, other in pairwise(seen):
        assert not {*one.values()} & {*other.values()}


def first_gradient(params, grads, kind):
    return CONTENDERS["fastadam, step(grads)"].build(params, grads, kind)._replace(feed=lambda others: None)


def parameter_missing(params, grads, kind):
    return Built(lambda: None, dict, dict)


@pytest.mark.parametrize("wrong", [other_learning_rate, other_gradient, first_gradient, parameter_missing])
def test_a_contender_that_is_wrong_is_not_timed(monkeypatch, wrong):
    check_refused(monkeypatch, wrong)


def test_a_contender_that_goes_too_far_is_not_timed_where_its_storage_would_allow_each_value(monkeypatch):
    def wrong(params, grads, kind):
        optimizer = fastadam.Adam(params, lr=1.15e-3)
        return Built(lambda: optimizer.step(grads), lambda: params, grads.update)

    check_refused(monkeypatch, wrong, like="fastadam, 8-bit m, v", reason=r"wrong one, plain: moved 1\.15 times as far")


ENDS = COMPARED // 4


@pytest.mark.parametrize("place", [0, ENDS - 1, slice(25_000, 25_010), -ENDS, -1])
def test_both_ends_of_a_large_tensor_and_what_lies_between_are_compared(monkeypatch, place):
    def wrong(params, grads, kind):
        params["flat"][place] += 1e-3
        return CONTENDERS["NumPy, in place"].build(params, grads, kind)

    check_refused(monkeypatch, wrong, flat(50_000))


@kinds_of(LIMITS)
def test_a_limit_moves_the_bytes_of_its_layout(monkeypatch, name, kind):
    expected, touched = moves(CONTENDERS[name].layout, kind), []
    part, size = 100, int(100 / expected.part)

    def uncompiled(template, *names, **options):
        def call(*arrays):
            for index, array in enumerate(arrays):
                array.view(np.uint8)[:] = index + 1
            before = [array.copy() for array in arrays]
            template(*arrays)
            pairs = [(old, new) for old, new in zip(before, arrays, strict=True) if old.nbytes >= part]
            touched.append([(old.nbytes / part, not np.array_equal(old, new)) for old, new in pairs])

        return call

    monkeypatch.setattr(limits, "touched", lambda count: np.ones(count, np.uint8))
    monkeypatch.setattr(limits, "jit", uncompiled)
    monkeypatch.setattr(bandwidth, "jit", uncompiled)
    params, grads = flat(size).random(seed=0), flat(size).random(seed=1)
    built = CONTENDERS[name].build(params, grads, kind)
    built.step()
    *first, main = touched
    assert first == [[(expected.first, False)]] * bool(expected.first)
    kept, written = ((each, False) for each in expected.read), (*expected.updated, *expected.written)
    assert main == [*kept, *((each, True) for each in written)]
    # Gradients that a step zeroes are restored before.
    assert (built.prepare is None) == bool(expected.read)
    once, twice = sum(expected.read) + sum(expected.written), sum(expected.updated)
    assert CONTENDERS[name].bytes_moved(kind) == expected.part * (once + 2 * twice + expected.first)


@pytest.mark.parametrize(
    ("name", "kind", "moved"),
    [
        ("torch, fused", "plain", 28),
        ("fastadam", "clip", 32),
        ("fastadam", "full", 44),
        ("fastadam, bfloat16 m, v", "plain", 20),
        ("fastadam, 8-bit m, v", "plain", 16),
        ("fastadam, bfloat16 p, g, 8-bit m, v", "plain", 10),
        ("fastadam, masters, bfloat16 g, m, v", "plain", 18),
        ("fastadam, zero the gradients", "extras", 32),
        ("fastadam, bfloat16 copy of p", "extras", 30),
        ("fastadam, offloaded", "extras", 28),
        ("fastadam, clip by norm", "extras", 32),
        ("fastadam", "calls", 28),
        ("fastadam, exact rows", "rows", 0.28),
        ("memory, read", "plain", 4),
        ("memory, copy", "plain", 8),
    ],
)
def test_bytes_that_a_step_has_to_move(name, kind, moved):
    assert CONTENDERS[name].bytes_moved(kind) == pytest.approx(moved)


def test_every_contender_has_a_limit_for_each_of_its_kinds():
    for name, contender in CONTENDERS.items():
        assert set(contender.kinds) <= set(CONTENDERS[contender.limit].kinds), name


def test_names_are_unique():
    names = Counter(each.name for module in registry._MODULES for each in module.CONTENDERS)
    assert set(names.values()) == {1}
    assert all(name == workload.name for name, workload in WORKLOADS.items())
    assert len({tuple(workload.shapes.values()) for workload in WORKLOADS.values()}) == len(WORKLOADS)


def test_libraries_with_threads_of_their_own_work_in_other_processes():
    homes = [CONTENDERS[name].process for name in ("fastadam", "torch, fused", "torch, compiled", "optax, jit")]
    assert len(set(homes)) == 4
    assert CONTENDERS["fastadam"].process == CONTENDERS["limit, float32"].process


@pytest.mark.parametrize(
    ("workload", "count", "size"), [(MLP, 6, 4_481), (RESNET50, 161, 25_557_032), (GPT2, 148, 124_439_808)]
)
def test_models_have_their_sizes(workload, count, size):
    assert (len(workload.shapes), workload.size) == (count, size)
    assert f"{count} tensors" in workload.name


def test_workloads_of_a_call_and_of_groups_have_their_sizes():
    sizes = [(len(workload.shapes), workload.size) for workload in (PAIR, *GROUPED)]
    assert sizes == [(2, 11), (20, 10_000_000), (20, 4_481), (465, 46_500)]


def test_only_a_hundredth_of_the_rows_of_a_table_has_a_gradient_and_in_reverse_the_same():
    assert TABLE.some_rows
    (gradient,) = table(1_000).gradients(seed=1).values()
    rows = np.flatnonzero(gradient.any(axis=1))
    assert rows.tolist() == [*range(5), *range(995, 1_000)]
    assert np.array_equal(gradient[rows], table(1_000).random(seed=1)["table"][rows])


def test_workloads_are_of_other_values_with_another_seed():
    one, other, again = (MLP.random(seed) for seed in (0, 1, 0))
    assert {name: array.shape for name, array in one.items()} == MLP.shapes
    for name, array in one.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, again[name])
        assert not np.array_equal(array, other[name])
