"""What an error or Ctrl-C from outside leaves behind: an optimizer that is as before, or as after the step."""

import gc
import threading
import weakref

import numpy as np
import pytest
from oracle import memory
from training import both, make

import fastadam
from fastadam.kernels import cpu
from fastadam.step.plan import Plan

SHAPES = {"a": (5, 3), "b": (7,)}


@both
def test_a_setting_for_which_there_is_no_memory_stays_as_it_was(flat, monkeypatch):
    opt = fastadam.Adam(make(SHAPES), flat=flat)
    opt.step(make(SHAPES, 1))
    before = memory(opt)

    def no_memory(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("fastadam.memory.buffers.zeros", no_memory)
        with pytest.raises(MemoryError):
            opt.param_groups[0]["amsgrad"] = True
    assert opt.param_groups[0]["amsgrad"] is False
    assert memory(opt) == before
    opt.step({**make(SHAPES, 2), "b": None})
    opt.param_groups[0]["amsgrad"] = True
    opt.step(make(SHAPES, 3))


@both
def test_a_group_for_which_there_is_no_memory_is_not_added(flat, monkeypatch):
    opt, other = (fastadam.Adam(make(SHAPES), flat=flat) for _ in range(2))
    added = make({"c": (4,)})

    def no_memory(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Plan, "refresh", no_memory)
        with pytest.raises(MemoryError):
            opt.add_param_group({"params": added})
    for each in (opt, other):
        each.step(make(SHAPES, 1))
        each.add_param_group({"params": make({"c": (4,)})})
        each.step(make({**SHAPES, "c": (4,)}, 2))
    assert memory(opt) == memory(other)


@pytest.mark.parametrize("options", [{}, {"sparse": "exact"}, {"zero_grad": True}], ids=str)
def test_ctrl_c_in_a_launch_is_raised_after_a_step_that_is_whole(options, monkeypatch):
    opt, other = (fastadam.Adam(make(SHAPES), **options) for _ in range(2))
    launcher = cpu.launcher

    def interrupted(*arguments, **keywords):
        launch = launcher(*arguments, **keywords)

        def run():
            launch()
            raise KeyboardInterrupt

        run.begun, run.ended = launch.begun, launch.ended
        return run

    grads = [make(SHAPES, seed) for seed in (1, 2)]
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "launcher", interrupted)
        with pytest.raises(KeyboardInterrupt):
            opt.step(grads[0])
    other.step(make(SHAPES, 1))
    assert opt.state_dict()["state"]["a"].get("skipped", 0) == 0
    assert memory(opt) == memory(other)
    if options.get("zero_grad"):
        assert not any(gradient.any() for gradient in grads[0].values())
    fastadam.Adam(make(SHAPES), **options).load_state_dict(opt.state_dict())


def test_threads_that_step_one_optimizer_take_turns():
    params = {"w": np.zeros(50_000, np.float32)}
    opt = fastadam.Adam(params, lr=0.0)

    def steps():
        for _ in range(100):
            opt.step({"w": np.ones(50_000, np.float32)})

    threads = [threading.Thread(target=steps) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = opt.state_dict()["state"]["w"]
    assert state["step"] == 400
    np.testing.assert_allclose(state["exp_avg"], 1.0, rtol=1e-5)


def test_a_replaced_pair_is_found_out():
    pairs = [("a", np.ones(3)), ("b", np.ones(2))]
    opt = fastadam.Adam(pairs)
    opt.step({"a": np.ones(3), "b": np.ones(2)})
    pairs[1] = ("b", np.ones(2))
    with pytest.raises(ValueError, match=r"`params\[1\]` must stay"):
        opt.step({"a": np.ones(3), "b": np.ones(2)})


@pytest.mark.parametrize("of", ["m", "g"])
def test_memory_of_the_optimizer_is_no_parameter(of):
    opt = fastadam.Adam({"w": np.ones(100)})
    opt.grads["w"] = 0.0
    opt.step()
    with pytest.raises(ValueError, match="must not share memory with the parameters and buffers"):
        opt.add_param_group({"params": [getattr(opt.buffers, of)[:3]]})


def test_rows_alone_are_no_gradients():
    opt = fastadam.Adam({"w": np.ones((3, 2))})
    with pytest.raises(TypeError, match="must be a mapping or a list of gradients, got SparseRows"):
        opt.step(fastadam.SparseRows([0], np.ones((1, 2))))


def test_buffers_take_no_new_attributes():
    opt = fastadam.Adam({"w": np.ones((3, 2))})
    with pytest.raises(AttributeError, match="cannot be replaced"):
        opt.buffers.copy = None


@both
@pytest.mark.parametrize("options", [{}, {"sparse": "exact"}, {"max_grad_norm": 1.0}, {"ema_decay": 0.9}], ids=str)
def test_an_optimizer_that_is_no_longer_used_is_freed_at_once(flat, options):
    def used():
        opt = fastadam.Adam(make(SHAPES), flat=flat, **options)
        opt.step(make(SHAPES, 1))
        opt.step({**make(SHAPES, 2), "b": None})
        opt.param_groups[0]["lr"] = 0.5
        opt.add_param_group({"params": make({"c": (4,)})})
        return opt

    used()  # Numba leaves cycles behind when it compiles
    gc.collect()
    gc.disable()
    try:
        opt = used()
        group, held = opt.param_groups[0], [weakref.ref(opt), *(weakref.ref(each) for each in opt.all_buffers)]
        del opt
        assert [each() for each in held] == [None] * len(held)
        group["lr"] = 0.1
        group["betas"] = (0.5, 0.9)
    finally:
        gc.enable()
