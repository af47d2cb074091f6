"""An exception from outside, at any line of any public call, leaves all as before the call or as after it."""

import signal
import threading
import warnings
from contextlib import suppress
from itertools import count

import numpy as np
import pytest
from exceptions_anywhere import raised_at
from numba.np.ufunc import parallel
from oracle import bits
from training import copies, make

import fastadam
from fastadam import SparseRows
from fastadam.kernels.texts.member import CLIP
from fastadam.memory.arrays import on_host

# A file that an exception finds before its `with` has begun is closed by Python, which says so.
unclosed = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
SHAPES = {"a": (5, 3), "b": (7,), "c": ()}
TABLE = {"table": (12, 2), "b": (3,)}


def fingerprint(opt):
    """All that a user can find out about an optimizer; rows are brought up to date."""
    opt.catch_up()
    plan = opt._engine.plan
    flats = [bits({key: flat for key, flat in each.flats.items() if key != "g"}) for each in opt.all_buffers]
    return {
        "params": bits(opt.params),
        "buffers": flats,
        "carried": on_host(plan.tables.carried)[plan.clock_of].tolist(),
        # Each step writes its factors anew.
        "hyper": np.delete(on_host(plan.tables.hyper)[plan.clock_of], CLIP, axis=1).tolist(),
        "asked": [plan.asked_of(index) for index in range(len(opt.param_groups))],
        "groups": [dict(group) for group in opt.param_groups],
        "norm": repr(opt.grad_norm),
        "skipped": opt.skipped_steps,
        "last": {} if opt._engine._history is None else {k: v.tolist() for k, v in opt._engine._history._last.items()},
    }


def rows(seed):
    values = np.random.default_rng(seed).standard_normal((3, 2)).astype(np.float32)
    return {"table": SparseRows([seed % 12, 5, (seed + 7) % 12], values), "b": np.ones(3, np.float32)}


def begun(options, shapes=SHAPES, steps=2):
    """A new optimizer that has taken some steps."""
    opt = fastadam.Adam(make(shapes), lr=0.01, **options)
    for seed in range(1, steps + 1):
        opt.step(rows(seed) if shapes is TABLE else make(shapes, seed))
    return opt


def without(grads, *names):
    return {**grads, **dict.fromkeys(names)}


def not_finite(grads):
    return {name: np.asarray(gradient * np.float32(np.nan)) for name, gradient in grads.items()}


def split(opt):
    opt.step(without(make(SHAPES, 8), "b"))


def load(opt):
    opt.load_state_dict(STATE)


STATE = begun({}, steps=5).state_dict()
SCHEDULE = {"lr": lambda step: 0.1 / (1 + step)}
# Name -> (options, shapes, the call).
CALLS = {
    "step": ({}, SHAPES, lambda opt: opt.step(make(SHAPES, 9))),
    "step, flat": ({"flat": True}, SHAPES, lambda opt: opt.step(make(SHAPES, 9))),
    "step, list": ({}, SHAPES, lambda opt: opt.step(list(make(SHAPES, 9).values()))),
    "step, scaled": ({}, SHAPES, lambda opt: opt.step(make(SHAPES, 9), grad_scale=0.5)),
    "step, clipped": ({"max_grad_norm": 0.5}, SHAPES, lambda opt: opt.step(make(SHAPES, 9))),
    "step, each clipped": ({"max_grad_norm_per_param": 0.5}, SHAPES, lambda opt: opt.step(make(SHAPES, 9))),
    "step, zeroed": ({"zero_grad": True}, SHAPES, lambda opt: opt.step(make(SHAPES, 9))),
    "step, averaged": ({"ema_decay": 0.9, "copy_dtype": "float16"}, SHAPES, lambda opt: opt.step(make(SHAPES, 9))),
    "step, some": ({}, SHAPES, split),
    "step, skipped": ({"nonfinite": "skip", "zero_grad": True}, SHAPES, lambda opt: opt.step(not_finite(make(SHAPES)))),
    "step, rows": ({"sparse": "exact"}, TABLE, lambda opt: opt.step(rows(9))),
    "step, lazy rows": ({}, TABLE, lambda opt: opt.step(rows(9))),
    "step, dense after rows": ({"sparse": "exact"}, TABLE, lambda opt: opt.step(make(TABLE, 4))),
    "step, some rows": ({"sparse": "exact"}, TABLE, lambda opt: opt.step(without(rows(9), "b"))),
    "catch_up": ({"sparse": "exact"}, TABLE, lambda opt: opt.catch_up()),
    "catch_up, rows": ({"sparse": "exact"}, TABLE, lambda opt: opt.catch_up("table", [1, 2, 3])),
    "add_param_group": ({}, SHAPES, lambda opt: opt.add_param_group({"params": make({"d": (4,)}), "lr": 0.5})),
    "add_param_group, flat": ({"flat": True}, SHAPES, lambda opt: opt.add_param_group({"params": make({"d": (4,)})})),
    "load_state_dict": ({}, SHAPES, load),
    "load_state_dict, skip": ({"nonfinite": "skip"}, SHAPES, load),
    "state_dict": ({}, SHAPES, lambda opt: opt.state_dict()),
    "lr": ({}, SHAPES, lambda opt: opt.param_groups[0].__setitem__("lr", 0.5)),
    "lr, a schedule": ({}, SHAPES, lambda opt: opt.param_groups[0].update(SCHEDULE)),
    "amsgrad": ({}, SHAPES, lambda opt: opt.param_groups[0].update(amsgrad=True, weight_decay=0.1)),
    "restart_ema": ({"ema_decay": 0.9}, SHAPES, lambda opt: opt.restart_ema()),
    "zero_grad": ({}, SHAPES, lambda opt: opt.zero_grad()),
}


def normal(found):
    """Without buffers that were only allocated: they are zero."""
    kept = [{key: each for key, each in flats.items() if any(each)} for flats in found["buffers"]]
    return {**found, "buffers": kept}


@pytest.mark.parametrize("name", CALLS)
def test_at_every_line_of_a_call(name):
    options, shapes, act = CALLS[name]
    untouched, done = begun(options, shapes), begun(options, shapes)
    act(done)
    before, after = normal(fingerprint(untouched)), normal(fingerprint(done))
    act(begun(options, shapes))  # compiled, and cached, what is
    for number in count():
        opt = begun(options, shapes)
        if not raised_at(number, lambda opt=opt: act(opt)):
            break
        assert subnormals_are_numbers(), f"line {number}"
        found = normal(fingerprint(opt))
        assert found in (before, after), f"line {number}: {differences(found, before, after)}"
        goes_on(opt, shapes if found == before or "add" not in name else {**shapes, "d": (4,)}, options)
    assert number > 3


def subnormals_are_numbers():
    """Whether this thread's arithmetic has them, as it should outside of a kernel."""
    return bool(np.ones(1) * 5e-324 > 0.0)


def differences(found, before, after):
    return {key: (found[key], before[key], after[key]) for key in found if found[key] not in (before[key], after[key])}


def goes_on(opt, shapes, options):
    """It takes a step; its state goes into a new optimizer; both go on alike."""
    opt.step(make(shapes, 20))
    groups = [{"params": copies({name: opt.params[name] for name in group["params"]})} for group in opt.param_groups]
    other = fastadam.Adam(groups, lr=0.01, **{**options, "flat": False})
    callables = [group["lr"] for group in opt.param_groups]
    for group, lr in zip(other.param_groups, callables, strict=True):
        group["lr"] = lr
    other.load_state_dict(opt.state_dict())
    for each in (opt, other):
        each.step(make(shapes, 21))
    assert bits(other.params) == bits(opt.params)
    states = [each.state_dict()["state"] for each in (opt, other)]
    assert [entry["step"] for entry in states[0].values()] == [entry["step"] for entry in states[1].values()]


@pytest.mark.parametrize("flat", [False, True], ids=["where they lie", "flat"])
def test_at_every_line_of_the_constructor(flat):
    for number in count():
        params = make(SHAPES)
        held, before = dict(params), bits(params)
        warnings.simplefilter("ignore")  # they are held elsewhere
        if not raised_at(number, lambda params=params: fastadam.Adam(params, flat=flat)):
            break
        assert subnormals_are_numbers(), f"line {number}"
        assert all(params[name] is held[name] for name in held), f"line {number}: re-bound"
        assert bits(params) == before


@unclosed
def test_at_every_line_of_a_save(tmp_path):
    path = tmp_path / "run.safetensors"
    opt = begun({})
    opt.save(path)
    opt.step(make(SHAPES, 5))
    before, state = path.read_bytes(), fingerprint(opt)
    new = tmp_path / "new.safetensors"
    opt.save(new)
    for number in count():
        if not raised_at(number, lambda: opt.save(path)):
            break
        assert path.read_bytes() in (before, new.read_bytes()), f"line {number}"
        path.write_bytes(before)
    assert fingerprint(opt) == state
    assert {each.name for each in tmp_path.iterdir()} == {path.name, new.name}


@unclosed
def test_at_some_lines_of_a_load(tmp_path):
    path, shapes = tmp_path / "run.safetensors", SHAPES
    saved = begun({}, steps=5)
    saved.save(path)
    before, after = normal(fingerprint(begun({}))), normal(fingerprint(saved))
    for number in count(step=5):
        opt = begun({})
        if not raised_at(number, lambda opt=opt: opt.load(path)):
            break
        found = normal(fingerprint(opt))
        assert found in (before, after), f"line {number}"
        goes_on(opt, shapes, {})


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers")
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}, {"nonfinite": "skip"}], ids=str)
def test_ctrl_c_in_a_long_step(options):
    armed = False

    def stop(*_):
        if armed:
            raise KeyboardInterrupt

    size = 400_000
    params, grads = {"w": np.ones(size, np.float32)}, {"w": np.ones(size, np.float32)}
    opt = fastadam.Adam(params, **options)
    opt.step(grads)
    earlier = signal.signal(signal.SIGALRM, stop)
    try:
        for delay in np.linspace(2e-5, 2e-3, 60):
            steps = opt.state_dict()["state"]["w"]["step"]
            with suppress(KeyboardInterrupt):
                armed = True
                signal.setitimer(signal.ITIMER_REAL, delay)
                opt.step(grads)
                armed = False
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert subnormals_are_numbers()
            entry = opt.state_dict()["state"]["w"]
            assert entry["step"] in (steps, steps + 1)
            assert entry.get("skipped", 0) == 0
            expected = (1.0 - 0.999 ** entry["step"]) / (size if "max_grad_norm" in options else 1)
            np.testing.assert_allclose(entry["exp_avg_sq"][::50_000], expected, rtol=1e-4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
    fastadam.Adam({"w": np.ones(size, np.float32)}, **options).load_state_dict(opt.state_dict())


def test_steps_do_not_wait_for_a_lock_that_ctrl_c_left_locked():
    params, grads = {"w": np.ones(400_000, np.float32)}, {"w": np.ones(400_000, np.float32)}
    opt = fastadam.Adam(params)
    opt.step(grads)  # starts Numba's threads
    other = threading.Thread(target=opt.step, args=(grads,), daemon=True)
    with parallel._backend_init_process_lock:
        other.start()
        other.join(60)
        assert not other.is_alive()


def test_a_torn_state_is_not_given_out(tmp_path):
    opt = begun({})

    class Torn:
        begun, ended = [0], [0]

        def __call__(self):
            self.begun[0] += 1
            opt.params["a"][0] = 7.0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opt._engine.journal.run(Torn(), lambda: None)
    uses = [
        opt.state_dict,
        lambda: opt.save(tmp_path / "torn"),
        lambda: opt.step(make(SHAPES, 1)),
        opt.catch_up,
        lambda: opt.load_state_dict(STATE, strict=False),
        lambda: opt.masters,
        lambda: opt.skipped_steps,
        lambda: opt.add_param_group({"params": make({"d": (2,)})}),
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match="this optimizer is torn"):
            use()
    assert not list(tmp_path.iterdir())
    for name, array in make(SHAPES).items():
        opt.params[name][...] = array
    opt.load_state_dict(STATE)
    opt.step(make(SHAPES, 1))


def test_a_warning_that_is_an_error_leaves_the_container_as_it_was():
    params = make(SHAPES)
    held = dict(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="still held elsewhere"):
            fastadam.Adam(params, flat=True)
    assert all(params[name] is held[name] for name in held)
