"""`fastadam.torch.adamw_step`: lists of tensors in one launch, with the bits of `adam_step` for each."""

import gc
import itertools
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastadam
from fastadam.kernels import cpu

torch = pytest.importorskip("torch")
from fastadam.torch import adamw_step  # noqa: E402

F4, F8, BF, F2 = torch.float32, torch.float64, torch.bfloat16, torch.float16
HYPER = {"lr": 3e-3, "beta1": 0.8, "beta2": 0.99, "weight_decay": 0.05, "eps": 1e-6}
SHAPES = [(), (0,), (1,), (7, 11), (8_193,), (3, cpu.PARALLEL_FROM // 3 + 1), (2, 3, 4, 5)]
NAMES = ("params", "grads", "exp_avgs", "exp_avg_sqs", "state_steps", "compute_params")


class Lists:
    """The tensors of a call: `call(**options)` steps them, `alone(**options)` does so by `adam_step`, one by one."""

    def __init__(self, shapes=SHAPES, dtypes=((F4, F4, F4, F4, None),), taken=0, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.lists = {name: [] for name in NAMES}
        for index, (shape, (p, g, m, v, c)) in enumerate(zip(shapes, itertools.cycle(dtypes), strict=False)):
            values = [torch.randn(shape, generator=generator) for _ in range(3)]
            tensors = [values[0].to(p), values[1].to(g), 0.1 * values[2], 0.01 * values[2].square()]
            tensors = [*tensors[:2], tensors[2].to(m), tensors[3].to(v), torch.tensor(float(taken + index))]
            for name, tensor in zip(NAMES, tensors, strict=False):
                self.lists[name].append(tensor)
            if c is not None:
                self.lists["compute_params"].append(torch.full(shape, torch.nan, dtype=c))
        if not self.lists["compute_params"]:
            del self.lists["compute_params"]

    def call(self, **options):
        assert adamw_step(*self.lists.values(), **(HYPER | options)) is None

    def alone(self, gradient_scale=1.0, **others):
        hyper = HYPER | others
        for p, g, m, v, step in zip(*list(self.lists.values())[:5], strict=True):
            step += 1
            flats = [tensor.reshape(-1) for tensor in (p, g, m, v)]
            fastadam.adam_step(
                *flats,
                step=int(step),
                lr=hyper["lr"],
                betas=(hyper["beta1"], hyper["beta2"]),
                eps=hyper["eps"],
                weight_decay=hyper["weight_decay"],
                decoupled_weight_decay=True,
                grad_scale=gradient_scale,
            )
        for p, c in zip(self.lists["params"], self.lists.get("compute_params", ()), strict=False):
            c.copy_(p)

    def new_gradients(self, seed):
        generator = torch.Generator().manual_seed(seed)
        grads = self.lists["grads"]
        grads[:] = [torch.randn(grad.shape, generator=generator).to(grad.dtype) for grad in grads]

    def bits(self):
        return {name: [bits(tensor) for tensor in tensors] for name, tensors in self.lists.items()}


def bits(tensor):
    return tensor.detach().clone().reshape(-1).view(torch.uint8).numpy().tobytes()


COMBINATIONS = {
    "float32": [(F4, F4, F4, F4, None)],
    "offload": [(F4, BF, F4, F4, BF)],
    "copies of each dtype": [(F4, F4, F4, F4, c) for c in (F4, BF, F2)],
    "gradients of each dtype": [(F4, g, F4, F4, None) for g in (BF, F4, F2)],
    "bfloat16 moments": [(F4, BF, BF, BF, BF), (F4, F4, F4, BF, F4), (F4, BF, BF, F4, F2)],
    "16-bit parameters": [(BF, BF, F4, F4, None), (BF, F4, BF, BF, None), (F2, F2, F4, F4, None)],
    "float64": [(F8, F8, F8, F8, None)],
    "float64 beside others": [(F8, F8, F8, F8, F8), (F4, BF, F4, F4, BF), (F8, F8, F8, F8, BF)],
}
combinations = pytest.mark.parametrize("dtypes", COMBINATIONS.values(), ids=COMBINATIONS)


@combinations
@pytest.mark.parametrize(
    "options", [{}, {"gradient_scale": 0.3, "beta1": 0.4, "beta2": 0.3, "weight_decay": 0.0}], ids=str
)
def test_equals_adam_step_on_each_tensor_bit_for_bit(dtypes, options):
    ours, other = Lists(dtypes=dtypes), Lists(dtypes=dtypes)
    for seed in (1, 2, 3):
        for each in (ours, other):
            each.new_gradients(seed)
        ours.call(**options)
        other.alone(**options)
        assert ours.bits() == other.bits()


def test_equals_the_optimizer_bit_for_bit():
    ours = Lists(SHAPES[3:])
    for each in ours.lists["exp_avgs"] + ours.lists["exp_avg_sqs"] + ours.lists["state_steps"]:
        each.zero_()
    arrays = [p.numpy().copy() for p in ours.lists["params"]]
    betas = HYPER["beta1"], HYPER["beta2"]
    optimizer = fastadam.AdamW(arrays, HYPER["lr"], betas, HYPER["eps"], HYPER["weight_decay"])
    for seed in range(5):
        ours.new_gradients(seed)
        ours.call()
        optimizer.step([g.numpy() for g in ours.lists["grads"]])
    for p, array in zip(ours.lists["params"], arrays, strict=True):
        np.testing.assert_array_equal(p.numpy(), array)


@pytest.mark.parametrize("dtype", [F4, F8])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_goes_with_torchs_loop_over_many_steps(dtype, weight_decay):
    ours = Lists([(5, 7), (), (40,)], [(dtype,) * 4 + (BF,)])
    for each in ours.lists["exp_avgs"] + ours.lists["exp_avg_sqs"] + ours.lists["state_steps"]:
        each.zero_()
    theirs = [torch.nn.Parameter(p.clone()) for p in ours.lists["params"]]
    hyper = HYPER | {"weight_decay": weight_decay}
    betas = HYPER["beta1"], HYPER["beta2"]
    optimizer = torch.optim.AdamW(theirs, HYPER["lr"], betas, HYPER["eps"], weight_decay, foreach=False)
    for seed in range(150):
        ours.new_gradients(seed)
        present = [index for index in range(3) if (seed + index) % 4]  # steps are counted for each parameter
        for index, p in enumerate(theirs):
            p.grad = 0.25 * ours.lists["grads"][index] if index in present else None
        some = {name: [tensors[index] for index in present] for name, tensors in ours.lists.items()}
        adamw_step(*some.values(), **hyper, gradient_scale=0.25)
        optimizer.step()
    tolerance = {F4: 3e-6, F8: 1e-13}[dtype]
    for index, p in enumerate(theirs):
        state = optimizer.state[p]
        pairs = [(ours.lists["params"], p), (ours.lists["exp_avgs"], state["exp_avg"])]
        pairs += [(ours.lists["exp_avg_sqs"], state["exp_avg_sq"])]
        for mine, other in pairs:
            torch.testing.assert_close(mine[index], other.detach(), rtol=tolerance, atol=tolerance)
        assert ours.lists["state_steps"][index] == state["step"]
        assert bits(ours.lists["compute_params"][index]) == bits(ours.lists["params"][index].to(BF))


# --- one launch, made once


@pytest.fixture
def launches(monkeypatch):
    """A list with "made" for each launcher that is made, and "run" for each run."""
    seen, launcher = [], cpu.launcher

    def watched(*arguments, **options):
        seen.append("made")
        launch = launcher(*arguments, **options)
        return lambda: (seen.append("run"), launch())

    monkeypatch.setattr(cpu, "launcher", watched)
    return seen


def test_all_tensors_are_one_launch_which_later_calls_take_again(launches):
    dtypes, shapes = COMBINATIONS["bfloat16 moments"] + COMBINATIONS["float32"], [(3, 5), (2,), (9,), (4,), (1, 1)]
    Lists(shapes, [(*each[:4], BF) for each in dtypes]).call()
    assert launches == ["made", "run"]
    Lists(shapes, [(*each[:4], BF) for each in dtypes], taken=5).call(lr=1.0, eps=0.1, weight_decay=0.0, beta2=0.5)
    assert launches == ["made", "run", "run"]


def test_what_is_kept_ready_is_bounded(monkeypatch):
    from fastadam.torch import launches as launching

    monkeypatch.setattr(launching, "_MOST_KEPT", 20_000)
    with ThreadPoolExecutor(1) as pool:
        counts = list(pool.map(lambda size: (Lists([(size,)]).call(), len(launching._kept.ready))[1], range(1, 60)))
    assert 10 < max(counts) < 25
    assert min(counts[20:]) < max(counts)


def test_calls_of_any_shapes_dtypes_and_settings_do_not_meet():
    kinds = [
        (shapes, dtypes, {"lr": lr, "beta1": beta1, "gradient_scale": lr})
        for shapes in ([(3,)], [(3,), (4,)], [(4,), (3,)], [(2, 2), (3,)])
        for dtypes in COMBINATIONS.values()
        for lr, beta1 in ((0.1, 0.9), (0.2, 0.3))
    ]
    ours, others = ([Lists(shapes, dtypes) for shapes, dtypes, _ in kinds] for _ in range(2))
    for seed in (1, 2):
        for mine, other, (_, _, options) in zip(ours, others, kinds, strict=True):
            for each in (mine, other):
                each.new_gradients(seed)
            mine.call(**options)
            other.alone(**options)
    for mine, other in zip(ours, others, strict=True):
        assert mine.bits() == other.bits()


def test_python_threads_get_what_one_gets():
    def stepped(seed):
        lists = Lists(dtypes=COMBINATIONS["offload"], seed=seed)
        for step in range(5):
            lists.new_gradients(step)
            lists.call(lr=0.01 * (seed + 1))
        return lists.bits()

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(stepped, range(8)))
    assert together == list(map(stepped, range(8)))


@pytest.mark.parametrize("threads", [1, None])
def test_any_number_of_threads_gives_the_same_bits(threads):
    ours, other = Lists(), Lists()
    ours.call(num_threads=threads)
    other.alone()
    assert ours.bits() == other.bits()


# --- where tensors lie


def test_tensors_are_found_anew_at_each_call_and_none_is_kept():
    ours, other = Lists(), Lists()
    for seed in (1, 2):
        ours.call()
        other.alone()
        for each in (ours, other):
            each.new_gradients(seed)
        for tensors in ours.lists.values():
            for tensor in tensors:
                tensor.data = tensor.clone()
    ours.call()
    other.alone()
    assert ours.bits() == other.bits()
    held = [weakref.ref(tensor) for tensors in ours.lists.values() for tensor in tensors]
    del ours, tensors, tensor
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)


def test_slices_of_slabs_are_stepped_and_nothing_beside_them_is():
    slabs = [torch.randn(300).abs() for _ in range(4)]
    kept = [slab.clone() for slab in slabs]
    parts = [[slab[101:150].view(7, 7), slab[150:200]] for slab in slabs]
    copies = [[part.clone() for part in each] for each in parts]
    adamw_step(*parts, [1, 2], **HYPER)
    adamw_step(*copies, [1, 2], **HYPER)
    for slab, before, both in zip(slabs, kept, copies, strict=True):
        before[101:200] = torch.cat([part.reshape(-1) for part in both])
        torch.testing.assert_close(slab, before, rtol=0, atol=0)


def test_any_dense_order_of_the_elements_is_taken():
    def laid(order):
        lists = Lists([(2, 3, 4, 5)], COMBINATIONS["offload"])
        for name in set(NAMES) - {"state_steps"}:
            lists.lists[name] = [order(tensor) for tensor in lists.lists[name]]
        return lists

    plain = laid(lambda tensor: tensor)
    plain.call()
    last = laid(lambda tensor: tensor.to(memory_format=torch.channels_last))
    turned = laid(lambda tensor: tensor.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0))
    for each in (last, turned):
        assert not each.lists["params"][0].is_contiguous()
        each.call()
        assert each.bits() == plain.bits()


def test_parameters_that_require_gradients_are_stepped_and_versions_go_on():
    lists = Lists([(3,), (4,)], COMBINATIONS["offload"])
    lists.lists["params"] = [torch.nn.Parameter(p) for p in lists.lists["params"]]
    before = {name: [tensor._version for tensor in tensors] for name, tensors in lists.lists.items()}
    (square,) = [lists.lists["params"][0] ** 2]
    lists.call()
    for name, tensors in lists.lists.items():
        gone_on = [tensor._version > version for tensor, version in zip(tensors, before[name], strict=True)]
        assert gone_on == [name != "grads"] * 2, name
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()


def test_a_gradient_may_be_that_of_several_parameters():
    lists, other = Lists([(5,), (5,)]), Lists([(5,), (5,)])
    for each in (lists, other):
        each.lists["grads"][1] = each.lists["grads"][0]
    lists.call()
    other.alone()
    assert lists.bits() == other.bits()


def test_empty_lists_are_no_step():
    adamw_step([], [], [], [], [], [], **HYPER)
    adamw_step([], [], [], [], [], spans=[], **HYPER)


# --- steps


@pytest.mark.parametrize("dtype", [F4, F8, torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_tensors_of_steps_advance_by_one(dtype, shape):
    lists, other = Lists(), Lists()
    steps = [torch.full(shape, index, dtype=dtype) for index in range(len(SHAPES))]
    lists.lists["state_steps"] = steps
    lists.call()
    other.alone()
    assert [step.item() for step in steps] == list(range(1, len(SHAPES) + 1))
    assert all(step.dtype is dtype for step in steps)
    del lists.lists["state_steps"], other.lists["state_steps"]
    assert lists.bits() == other.bits()


def test_integers_are_numbers_of_this_step():
    lists, other = Lists(), Lists()
    lists.lists["state_steps"] = [1, np.int64(2), np.uint8(3), torch.tensor(3.0), 5, 6, 7]
    lists.call()
    other.alone()
    assert lists.lists.pop("state_steps") == [1, 2, 3, torch.tensor(4.0), 5, 6, 7]
    del other.lists["state_steps"]
    assert lists.bits() == other.bits()


def test_a_step_that_parameters_share_advances_once():
    lists = Lists([(3,), (4,)])
    step = torch.zeros(2)
    lists.lists["state_steps"] = [step[0], step[0]]
    lists.call()
    assert step.tolist() == [1, 0]


# --- spans


@combinations
def test_spans_in_any_order_have_the_bits_of_the_whole(dtypes):
    whole, parts = Lists(dtypes=dtypes, taken=2), Lists(dtypes=dtypes, taken=2)
    whole.call()
    sizes = [p.numel() for p in parts.lists["params"]]
    for first, second in ((0.6, 1.0), (0.0, 0.3), (0.3, 0.6)):
        parts.call(spans=[(int(first * size), int(second * size)) for size in sizes])
    assert [int(step) for step in parts.lists["state_steps"]] == list(range(2, 2 + len(SHAPES)))
    torch._foreach_add_(parts.lists["state_steps"], 1)
    assert parts.bits() == whole.bits()


def test_spans_from_several_python_threads_have_the_bits_of_the_whole():
    whole, parts = Lists([(100_000,)], COMBINATIONS["offload"]), Lists([(100_000,)], COMBINATIONS["offload"])
    whole.call()
    edges = list(range(0, 100_001, 5_000))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda start: parts.call(spans=[(start, start + 5_000)]), edges[:-1]))
    parts.lists["state_steps"][0] += 1
    assert parts.bits() == whole.bits()


def test_nothing_beside_a_span_is_written():
    lists, kept = Lists([(50,)], COMBINATIONS["offload"]), Lists([(50,)], COMBINATIONS["offload"])
    lists.call(spans=[(7, 30)])
    for name in ("params", "exp_avgs", "exp_avg_sqs", "compute_params"):
        changed = [a != b for a, b in zip(bits(lists.lists[name][0]), bits(kept.lists[name][0]), strict=True)]
        size = len(changed) // 50
        assert not any(changed[: 7 * size] + changed[30 * size :]), name
        assert sum(changed[7 * size : 30 * size]) >= 23, name


def test_one_call_may_have_several_spans_of_a_parameter():
    twice, whole = Lists([(50,)]), Lists([(50,)])
    adamw_step(*(2 * tensors for tensors in twice.lists.values()), **HYPER, spans=[(0, 20), (20, 50)])
    whole.call(spans=[(0, 50)])
    assert twice.bits() == whole.bits()
