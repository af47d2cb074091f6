"""Sharded optimizers on ranks that are threads: bits, memory, bytes, and what is said of ranks that disagree."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranks import LateGroup, ThreadGroup, errors_on_ranks, on_ranks
from sharded_training import CASES, SHAPES, gradients, model, optimizer, result, summed, take_steps, train

import fastadam
from fastadam.kernels.blocks import BLOCK
from fastadam.sharding import CollectiveError, DisagreementError
from fastadam.sharding.ranges import buckets, placed

GROUPS = {"at once": ThreadGroup, "by handles": LateGroup}


@cache
def expected(case, size):
    return train(case, None, size)


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, name)


@pytest.mark.parametrize("kind", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("case", CASES)
def test_any_number_of_ranks_has_the_bits_of_one_process(case, size, kind):
    for found in on_ranks(size, lambda group: train(case, group, size), kind):
        assert_same(found, expected(case, size))


@pytest.mark.parametrize("kind", ["NAdam", "Adamax", "RAdam", "Lion", "AdEMAMix", "Adam"])
def test_every_class_is_sharded(kind):
    def trained(group):
        held = {"flat": True} if group is None else {"shard": group}
        opt = getattr(fastadam, kind)(model(), lr=0.01, **held)
        take_steps(opt, range(3), None if group is None else group.rank, 3)
        return result(opt)

    for found in on_ranks(3, trained):
        assert_same(found, trained(None))


# --- where shares end


@given(st.lists(st.integers(0, 70_000), min_size=1, max_size=12), st.sampled_from([16, 32, 128]), st.integers(2, 17))
def test_shares_are_equal_and_end_at_blocks(sizes, gap, ranks):
    starts, width = placed(sizes, gap, ranks)
    stop = 0
    for start, size in zip(starts, sizes, strict=True):
        assert start % gap == 0
        assert start >= stop
        stop = start + size
        for end in range(width, ranks * width, width):
            assert not start < end < stop or (end - start) % BLOCK == 0
    assert stop <= ranks * width
    # A share has little more than its part, unless one parameter that is not cut is larger.
    assert width <= max(max(sizes) if max(sizes) <= BLOCK else 0, sum(sizes) / ranks) + 2 * BLOCK + gap * len(sizes)


def test_buckets_are_neighbours_of_so_many_bytes():
    assert buckets([0, 1, 2, 3, 4], [5, 5, 20, 1, 1], 10) == [[0, 1], [2], [3, 4]]
    assert buckets([1, 3], [5, 5, 20, 1, 1], None) == [[1, 3]]


@pytest.mark.parametrize("options", [{}, {"moment_dtype": "float8"}, {"ema_decay": 0.9}], ids=str)
@pytest.mark.parametrize("size", [2, 8])
def test_a_rank_keeps_its_part_of_the_state(size, options):
    shapes = {"a": (1_000, 1_000), "b": (3_000_000,), "c": (77,), "d": (500, 1_001)}

    def kept(group):
        held = {"flat": True} if group is None else {"shard": group}
        params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        opt = fastadam.AdamW(params, **held, **options)
        usage = {each.name: each.nbytes for each in opt.memory_usage().buffers}
        flats = [flats for buffers in opt.all_buffers for flats in buffers.flats.items()]
        assert sum(flat.nbytes for name, flat in flats if name not in ("p", "g")) == sum(
            nbytes for name, nbytes in usage.items() if name not in ("p", "g")
        )
        return sum(nbytes for name, nbytes in usage.items() if name not in ("p", "g"))

    whole = kept(None)
    for nbytes in on_ranks(size, kept):
        assert nbytes <= 1.02 * whole / size


# --- what is sent


def test_a_step_sends_gradients_once_parameters_once_and_little_else():
    count, size = 4_000_000, 4

    def sent(group):
        opt = fastadam.AdamW({"w": np.zeros(count, np.float32)}, shard=group, max_grad_norm=1.0)
        opt.grads["w"] = 1.0
        group.wire.nbytes[group.rank] = 0
        group.calls.clear()
        opt.step()
        return group.wire.nbytes[group.rank], group.calls

    for nbytes, calls in on_ranks(size, sent):
        # A thread hands over all of its gradients, and its part of the parameters; partial sums are 0.024%.
        assert nbytes <= 1.01 * 4 * (count + count / size)
        assert calls == ["all_gather", "reduce_scatter", "all_gather", "all_gather"]


def test_partial_sums_are_8_bytes_for_a_block():
    count, size = 32 * BLOCK * 4, 4

    def sent(group):
        opt = fastadam.AdamW({"w": np.zeros(count, np.float32)}, shard=group, max_grad_norm=1.0)
        opt.grads["w"] = 1.0
        opt.step()
        before = group.wire.nbytes[group.rank]
        opt._engine.exchange.order(np.array([True])).gathered()
        return group.wire.nbytes[group.rank] - before

    assert on_ranks(size, sent) == [count * 4 * 8 // (4 * BLOCK) // size] * size


def test_one_rank_sends_nothing():
    def calls(group):
        opt = optimizer(group)
        take_steps(opt, range(2), 0, 1)
        return group.calls

    assert on_ranks(1, calls) == [[]]


def test_a_bucket_is_stepped_before_the_gradients_of_the_next_are_there():
    events = []

    class Group(LateGroup):
        def reduce_scatter(self, flat, shard):
            return self._noted("reduced", super().reduce_scatter(flat, shard))

        def all_gather(self, shard, flat):
            return self._noted("gathered", super().all_gather(shard, flat))

        def _noted(self, what, handle):
            if self.rank == 0:
                act = handle.act
                handle.act = lambda: (act(), events.append(what))
            return handle

    def stepped(group):
        opt = optimizer(group, bucket_bytes=1)
        assert len(opt.all_buffers) == 6
        take_steps(opt, range(1), group.rank, 2)
        if group.rank == 0:
            events.clear()
            turns = next(iter(opt._engine.plan._prepared.values())).launch.turns
            turns[:] = [(lambda launch=launch: (events.append("stepped"), launch())) for launch in turns]
        take_steps(opt, range(1, 2), group.rank, 2)

    on_ranks(2, stepped, Group)
    # What ranks compare comes first.
    assert events == ["gathered", *["reduced", "stepped"] * 6, *["gathered"] * 6]


# --- gradients


@pytest.mark.parametrize("given", ["in grads", "mapping", "list", "flat"])
def test_gradients_come_in_every_form(given):
    def trained(group):
        opt = optimizer(group)
        for step in range(2):
            found = gradients(step, group.rank)
            if given == "in grads":
                for name, gradient in found.items():
                    opt.grads[name] = gradient
                opt.step()
            elif given == "mapping":
                opt.step(found)
            elif given == "list":
                opt.step(list(found.values()))
            else:
                flat = np.zeros_like(opt.buffers.g)
                for name, view in opt.buffers.views(flat).items():
                    view[...] = found[name]
                opt.step(flat)
        return result(opt)

    alone = optimizer(None)
    for step in range(2):
        alone.step(summed(step, 2))
    for found in on_ranks(2, trained):
        assert_same(found, result(alone))


def test_gradients_are_zeroed_on_every_rank():
    def zeroed(group):
        opt = optimizer(group, zero_grad=True)
        found = gradients(0, group.rank)
        opt.step(found)
        return all(not gradient.any() for gradient in (*found.values(), *opt.grads.values()))

    assert on_ranks(3, zeroed) == [True] * 3


def test_groups_schedules_and_later_groups():
    def trained(group):
        held = {"flat": True} if group is None else {"shard": group}
        params, later = model(), {"later": np.ones(20_000, np.float32)}
        groups = [{"params": {"weights": params.pop("weights")}, "lr": lambda step: 0.1 / (1 + step)}]
        groups += [{"params": {"block": params.pop("block")}, "weight_decay": 0.5}]
        opt = fastadam.AdamW(groups, max_grad_norm=1.0, **held)
        names = ["weights", "block"]
        for step in range(4):
            if step == 2:
                opt.add_param_group({"params": later, "lr": 0.3})
            drawn = summed(step, 2) if group is None else gradients(step, group.rank)
            found = {name: drawn[name] for name in names}
            if step >= 2:
                found["later"] = np.full(20_000, 0.25 if group is None else 0.125, np.float32)
            opt.step(found)
            opt.param_groups[1]["lr"] = 0.01 * step
        return result(opt)

    for found in on_ranks(2, trained):
        assert_same(found, trained(None))


@pytest.mark.parametrize("policy", ["skip", "raise", "propagate"])
def test_a_gradient_that_is_not_finite_counts_for_all_ranks(policy):
    def trained(group):
        opt = optimizer(group, nonfinite=policy)
        rank, ranks = (None, 3) if group is None else (group.rank, 3)
        take_steps(opt, range(1), rank, ranks)
        found = summed(1, ranks) if rank is None else gradients(1, rank)
        if rank in (None, 2):
            found["weights"][200, 7] = np.inf
        if policy == "raise":
            with pytest.raises(
                FloatingPointError, match=r"'weights' must be finite, got inf at index \(200, 7\)"
            ) as error:
                opt.step(found, grad_scale=1.0 / 3)
            assert rank is None or "on rank 2, " in str(error.value)
        else:
            opt.step(found, grad_scale=1.0 / 3)
        take_steps(opt, range(3, 5), rank, ranks)
        return result(opt)

    for found in on_ranks(3, trained):
        assert_same(found, trained(None))


# --- what every rank can ask for


def test_averages_and_masters_are_gathered():
    case = {"master_weights": True, "ema_decay": 0.9, "dtype": CASES["bfloat16"]["dtype"]}

    def kept(group):
        opt = optimizer(group, **case)
        take_steps(opt, range(3), None if group is None else group.rank, 2, dtype=case["dtype"])
        return {name: np.array(value) for name, value in opt.ema.items()}, opt.masters

    for found in on_ranks(2, kept):
        for one, other in zip(found, kept(None), strict=True):
            assert_same(one, other)


# --- refusals


class Alone:
    rank, size = 0, 1

    def reduce_scatter(self, flat, shard):
        raise AssertionError

    all_gather = reduce_scatter


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"flat": False}, ValueError, "`flat` must be True with `shard`, got False"),
        ({"sparse": "exact"}, ValueError, "`sparse` must be 'lazy' with `shard`, got 'exact'"),
        ({"copy_dtype": "bfloat16"}, ValueError, "`copy_dtype` must be None with `shard`, got 'bfloat16'"),
        ({"bucket_bytes": 0}, ValueError, "`bucket_bytes` must be >= 1, got 0"),
        ({"shard": None, "bucket_bytes": 5}, ValueError, "`bucket_bytes` must be None without `shard`, got 5"),
        ({"shard": object()}, TypeError, "`shard` must be a process group"),
        ({"shard": type("G", (Alone,), {"rank": 1})()}, ValueError, r"`shard.rank` must be in \[0, 1\), got 1"),
        ({"shard": type("G", (Alone,), {"size": 1.0})()}, TypeError, "`shard.size` must be an integer, got 1.0"),
    ],
    ids=["flat", "sparse", "copy_dtype", "bucket_bytes", "no shard", "no group", "rank", "size"],
)
def test_what_cannot_be_shared_is_refused_by_name(options, error, message):
    params = model()
    before = dict(params)
    with pytest.raises(error, match=message):
        fastadam.Adam(params, **{"shard": Alone(), **options})
    assert all(params[name] is before[name] for name in params)


def test_one_flat_array_cannot_be_shared():
    with pytest.raises(
        ValueError, match="`params` must be a dict or a list of arrays with `shard`, got one flat array"
    ):
        fastadam.Adam(np.zeros(5, np.float32), shard=Alone())


def test_gradients_of_rows_are_refused_on_all_ranks():
    def act(group):
        opt = optimizer(group)
        found = gradients(0, group.rank)
        found["table"] = fastadam.SparseRows([1], np.zeros((1, 5), np.float32))
        opt.step(found)

    for error in errors_on_ranks(2, act):
        assert isinstance(error, TypeError)
        assert "`grads['table']` must be an array with `shard`, got SparseRows" in str(error)


# --- ranks that disagree


def other(**changes):
    """An optimizer that is another on rank 1."""
    return lambda group: optimizer(group, **(changes if group.rank == 1 else {}))


def other_values(group):
    params = model()
    params["block"][9] += group.rank
    fastadam.AdamW(params, shard=group)


def other_shapes(group):
    fastadam.AdamW({"a": np.zeros(5), "b": np.zeros(3 + group.rank)}, shard=group)


def no_array(group):
    fastadam.AdamW(
        {"a": np.zeros(5), "b": np.zeros(5) if group.rank else np.zeros(5)[::-1]}, lr=-0.1 * group.rank, shard=group
    )


BUILT = {
    "shapes": (other_shapes, r"same parameters .*, got 'b' float64 \(4,\) on rank 1 and 'b' float64 \(3,\) on rank 0"),
    "option": (other(max_grad_norm=1.0), "same options .*, got `max_grad_norm` 1.0 on rank 1 and `max_grad_norm` None"),
    "setting": (other(weight_decay=0.5), r"same settings .*, got `param_groups\[0\]\['weight_decay'\]` 0.5 on rank 1"),
    "buckets": (other(bucket_bytes=9), "same options .*, got `bucket_bytes` 9 on rank 1"),
    "values": (other_values, "same values of parameters .*, got values of 'block'"),
}


@pytest.mark.parametrize(("act", "message"), BUILT.values(), ids=BUILT)
def test_ranks_that_build_other_optimizers_are_told(act, message):
    for error in errors_on_ranks(3, act):
        assert isinstance(error, DisagreementError)
        with pytest.raises(DisagreementError, match=message):
            raise error


def test_a_rank_that_cannot_build_its_optimizer_tells_the_others():
    first, second = errors_on_ranks(2, no_array)
    assert isinstance(second, ValueError)
    assert isinstance(first, DisagreementError)
    assert "rank 1 has failed" in str(first)
    assert str(second) in str(first)


def with_other_step(change):
    def act(group):
        opt = optimizer(group)
        take_steps(opt, range(2), group.rank, 3)
        before = {name: value.copy() for name, value in opt.params.items()}
        found, scale = gradients(3, group.rank), 1.0
        if group.rank == 1:
            found, scale = change(opt, found)
        try:
            opt.step(found, grad_scale=scale)
        finally:
            assert_same({name: value.copy() for name, value in opt.params.items()}, before)

    return act


def without_gradient(opt, found):
    return {**found, "weights": None}, 1.0


def with_other_scale(opt, found):
    return found, 0.5


def with_other_lr(opt, found):
    opt.param_groups[0]["lr"] = 0.25
    return found, 1.0


def with_other_steps(opt, found):
    opt._engine.plan.asked += 1
    return found, 1.0


STEPS = {
    "gradient": (
        without_gradient,
        "same gradients before a step, got no gradient of 'weights' on rank 1",
    ),
    "scale": (with_other_scale, "same `grad_scale` before a step, got 0.5 on rank 1 and 1.0 on rank 0"),
    "lr": (with_other_lr, r"same settings before a step, got `param_groups\[0\]\['lr'\]` 0.25 on rank 1"),
    "steps": (with_other_steps, "same steps before a step, got 3 steps on rank 1 and 2 steps on rank 0"),
}


@pytest.mark.parametrize(("change", "message"), STEPS.values(), ids=STEPS)
def test_ranks_that_take_other_steps_are_told(change, message):
    for error in errors_on_ranks(3, with_other_step(change)):
        with pytest.raises(DisagreementError, match=message):
            raise error


def test_a_rank_whose_gradients_are_refused_tells_the_others():
    def bad(opt, found):
        return {**found, "bias": np.zeros(3, np.float32)}, 1.0

    first, second, third = errors_on_ranks(3, with_other_step(bad))
    assert isinstance(second, ValueError)
    for error in (first, third):
        assert isinstance(error, DisagreementError)
        assert f"rank 1 has failed before a step, so that no rank goes on: ValueError: {second}" in str(error)


def test_all_go_on_after_a_refused_step():
    def act(group):
        opt = optimizer(group)
        bad = {**gradients(0, group.rank), "bias": 1}
        with pytest.raises((TypeError, DisagreementError)):
            opt.step(bad if group.rank else gradients(0, group.rank))
        take_steps(opt, range(4), group.rank, 2)
        return result(opt)

    for found in on_ranks(2, act):
        assert_same(found, expected("float32", 2))


def test_a_collective_that_fails_is_named():
    class Broken(ThreadGroup):
        broken = False

        def reduce_scatter(self, flat, shard):
            if self.broken:
                raise TimeoutError("no answer in 30 s")
            super().reduce_scatter(flat, shard)

    def act(group):
        opt = optimizer(group)
        group.broken = True
        opt.step(gradients(0, group.rank))

    for rank, error in enumerate(errors_on_ranks(2, act, Broken)):
        message = f"`reduce_scatter` of the gradients of bucket 0 failed on rank {rank} of 2: no answer in 30 s"
        with pytest.raises(CollectiveError, match=message):
            raise error
        assert isinstance(error.__cause__, TimeoutError)


def test_an_array_that_is_still_held_is_warned_of():
    params = model()
    held = params["weights"]
    with pytest.warns(UserWarning, match="still held elsewhere"):
        fastadam.AdamW(params, shard=Alone())
    assert held.shape == SHAPES["weights"]
