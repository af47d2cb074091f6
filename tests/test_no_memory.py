"""Whichever allocation fails, nothing has been re-bound or written, and the optimizer can be used on."""

from contextlib import suppress
from itertools import count

import numpy as np
import pytest
from oracle import bits
from training import both, make

import fastadam
from fastadam.kernels.cpu import jit
from fastadam.kernels.cpu.launch import leaves_of

SHAPES = {"a": (5, 300), "b": (7,)}
ALLOCATE = (
    "zeros",
    "empty",
    "full",
    "concatenate",
    "array",
    "stack",
    "column_stack",
    "repeat",
    "pad",
    "ascontiguousarray",
)
OPTIONS = [
    {},
    {"ema_decay": 0.9, "copy_dtype": "float16", "max_grad_norm": 1.0},
    {"moment_dtype": "float8"},
    {"sparse": "exact"},
]


class NoMemory:
    """Lets allocation `number`, from 0 on, fail."""

    def __init__(self, monkeypatch, number):
        self.left, self.failed = number, False
        for name in ALLOCATE:
            monkeypatch.setattr(np, name, self.failing(getattr(np, name)))

    def failing(self, function):
        def allocate(*arguments, **keywords):
            self.left -= 1
            if self.left == -1:
                self.failed = True
                raise MemoryError
            return function(*arguments, **keywords)

        return allocate


def fails(number, act):
    """Call `act` with allocation `number` failing; return whether there were so many."""
    with pytest.MonkeyPatch.context() as patch:
        memory = NoMemory(patch, number)
        with suppress(MemoryError):
            act()
    return memory.failed


def state(opt):
    opt.catch_up()
    held = list(opt.state_dict()["state"].values())
    arrays = [{key: value.tobytes() for key, value in entry.items() if hasattr(value, "tobytes")} for entry in held]
    return bits(opt.params), arrays, [entry["step"] for entry in held], [dict(group) for group in opt.param_groups]


def begun(flat, options):
    opt = fastadam.Adam(make(SHAPES), flat=flat, **options)
    opt.step(make(SHAPES, 1))
    return opt


options = pytest.mark.parametrize("options", OPTIONS, ids=str)


@both
@options
@pytest.mark.filterwarnings("ignore:.*still held elsewhere")
def test_in_the_constructor(flat, options):
    begun(flat, options)
    for number in count():
        params = make(SHAPES)
        held, before = list(params.values()), bits(params)
        if not fails(number, lambda params=params: fastadam.Adam(params, flat=flat, **options)):
            break
        assert all(found is one for found, one in zip(params.values(), held, strict=True)), f"allocation {number}"
        assert bits(params) == before
        del held
        fastadam.Adam(params, flat=flat, **options).step(make(SHAPES, 1))
    assert number > 2


def add(opt):
    opt.add_param_group({"params": make({"c": (9,)})})


def gather(opt):
    opt.step({name: np.asfortranarray(gradient) for name, gradient in make(SHAPES, 2).items()})


def split(opt):
    opt.step({**make(SHAPES, 2), "b": None})


def load(opt):
    opt.load_state_dict(opt.state_dict(), convert=True)


def switch(opt):
    opt.param_groups[0].update(betas=(0.5, 0.6), amsgrad=opt._options.sparse == "lazy")


@both
@options
@pytest.mark.parametrize("act", [add, gather, split, load, switch], ids=lambda act: act.__name__)
def test_in_a_call(act, flat, options):
    done = begun(flat, options)
    act(done)
    before, after = state(begun(flat, options)), state(done)
    for number in count():
        opt = begun(flat, options)
        if not fails(number, lambda opt=opt: act(opt)):
            break
        found = state(opt)
        assert found in (before, after), f"allocation {number}"
        shapes = {**SHAPES, "c": (9,)} if "c" in opt.params else SHAPES
        opt.step(make(shapes, 3))


@pytest.fixture
def nothing_compiled(monkeypatch):
    """As in a new process. What is compiled meanwhile is forgotten afterwards, as nobody keeps its machine code."""
    monkeypatch.setattr(jit, "_leaves", {})
    leaves_of.cache_clear()
    yield
    leaves_of.cache_clear()


@both
@options
def test_in_a_step_that_compiles(flat, options, nothing_compiled, monkeypatch):
    expected = begun(flat, options)
    gather(expected)
    leaves_of.cache_clear()
    kept = dict(jit._leaves)
    jit._leaves.clear()

    class OutOfMemory(jit.CFunc):
        def compile(self):
            raise MemoryError

    opt = fastadam.Adam(make(SHAPES), flat=flat, **options)
    before = state(opt)
    with monkeypatch.context() as patch:
        patch.setattr(jit, "CFunc", OutOfMemory)
        with pytest.raises(MemoryError):
            opt.step(make(SHAPES, 1))
    assert state(opt) == before
    opt.step(make(SHAPES, 1))
    gather(opt)
    assert state(opt) == state(expected)
    assert jit._leaves.keys() == kept.keys()
