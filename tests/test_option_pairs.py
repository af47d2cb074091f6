"""Every pair of options is refused when an optimizer is made, or trains as an independent float64 Adam does."""

import itertools
import math
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from oracle import exact_member

import fastadam
from fastadam import SparseRows
from fastadam.kernels import cpu, reference

STEPS = 50
SHAPES = {"table": (40, 128), "bias": (7,), "scale": ()}
LR = 0.01
DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# Name of a factor -> its values; the first is the default.
FACTORS = {
    "member": ("Adam", "AdamW", "NAdam", "Adamax", "RAdam", "Lion", "AdEMAMix"),
    "convention": ("torch", "optax", "keras", "sklearn", "apex"),
    "params": ("float32", "float64", "float16", "bfloat16"),
    "amsgrad": (False, True),
    "weight_decay": (0.0, 0.1),
    "decoupled_weight_decay": (None, True, False),
    "decouple_lr": (False, True),
    "exclude_from_weight_decay": (None, "bias"),
    "eps_root": (0.0, 1e-6),
    "clip_value": (None, 0.5),
    "max_grad_norm": (None, 20.0),
    "max_grad_norm_per_param": (None, 1.5),
    "nonfinite": ("propagate", "skip", "raise"),
    "max_skipped_steps": (None, 1),
    "ema_decay": (None, 0.9),
    "ema_warmup": (False, True),
    "copy_dtype": (None, "bfloat16", "float16"),
    "zero_grad": (False, True),
    "moment_dtype": (None, "float32", "float64", "bfloat16", "float16", "float8", ("float16", "bfloat16")),
    "grad_dtype": (None, "float32", "bfloat16", "float16"),
    "master_weights": (False, True),
    "rounding": ("stochastic", "nearest"),
    "sparse": ("lazy", "exact"),
    "rows": (False, True),
    "some": (False, True),
    "maximize": (False, True),
    "groups": (1, 2),
    "betas": ("default", "small"),
    "lr": ("number", "schedule"),
    "grad_scale": (1.0, 0.5),
    "flat": (False, True),
}
OF_CALLS = ("member", "params", "exclude_from_weight_decay", "rows", "some", "groups", "betas", "lr", "grad_scale")


def schedule(step):
    return LR / (1.0 + 0.05 * step)


def arrays(dtype, seed):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape) + (seed == 0)).astype(dtype) for name, shape in SHAPES.items()}


def made(case):
    """The optimizer of a case; raise if it is refused."""
    kind = getattr(fastadam, case["member"])
    options = {key: case[key] for key in FACTORS if key not in OF_CALLS and case[key] != FACTORS[key][0]}
    if case["exclude_from_weight_decay"]:
        options["exclude_from_weight_decay"] = lambda name: name == "bias"
    if case["lr"] == "schedule":
        options["lr"] = schedule
    else:
        options["lr"] = LR
    if case["betas"] == "small":
        options["betas"] = (0.3, 0.4, 0.45) if case["member"] == "AdEMAMix" else (0.3, 0.4)
    if "float16" in str(case["moment_dtype"]):
        options["eps"] = 1e-3
    params = arrays(DTYPES[case["params"]], 0)
    if case["groups"] == 1:
        return kind(params, **options)
    rest = {name: params.pop(name) for name in ("bias", "scale")}
    return kind([{"params": params}, {"params": rest, "lr": 0.5 * LR, "weight_decay": 0.02}], **options)


def is_refused(case):
    try:
        made(case)
    except (TypeError, ValueError):
        return True
    return False


def gradients(case, step):
    """(gradients for a step, dense float64 ones, rows of the table that have one)."""
    dtype = DTYPES[case["grad_dtype"] or case["params"]]
    grads = arrays(dtype, step + 1)
    rows = np.random.default_rng(step).permutation(40)[:5] if case["rows"] else np.arange(40)
    if case["some"] and step % 3 == 1:
        grads["bias"] = None
    exact = {name: None if each is None else each.astype(np.float64) for name, each in grads.items()}
    if case["rows"]:
        values = grads["table"][rows].copy()
        grads["table"] = SparseRows(rows, values)
        exact["table"] = np.zeros(SHAPES["table"])
        exact["table"][rows] = values.astype(np.float64)
    if case["nonfinite"] != "propagate" and step % 10 == 7:
        grads["scale"] = np.asarray(math.nan, dtype)
        exact["scale"] = np.asarray(math.nan)
    return grads, exact, np.sort(rows)


class Exact:
    """The same run in float64."""

    def __init__(self, case, opt):
        self.case, self.opt = case, opt
        self.p = {name: np.array(each, np.float64) for name, each in opt.params.items()}
        start = opt._options.family_member
        has_max = case["amsgrad"] or start.name == "ademamix"
        self.state = {
            name: [np.zeros_like(p), np.zeros_like(p), np.zeros_like(p) if has_max else None]
            for name, p in self.p.items()
        }
        self.ema = {name: p.copy() for name, p in self.p.items()}
        self.steps = dict.fromkeys(self.p, 0)
        self.skipped = 0

    def step(self, number, grads, rows):
        case = self.case
        there = {name: case["grad_scale"] * g for name, g in grads.items() if g is not None}
        norm = math.sqrt(sum(float((g**2).sum()) for g in there.values()))
        if case["nonfinite"] != "propagate" and not math.isfinite(norm):
            self.skipped += 1
            return
        if case["max_grad_norm"]:
            there = {k: g * min(1.0, case["max_grad_norm"] / (norm + 1e-6)) for k, g in there.items()}
        if most := case["max_grad_norm_per_param"]:
            there = {k: g * (most / max(math.sqrt(float((g**2).sum())), most)) for k, g in there.items()}
        for group in self.opt.param_groups:
            lr = schedule(number - self.raised) if callable(group["lr"]) else group["lr"]
            for name in group["params"]:
                if name in there:
                    self.one(name, there[name], group, lr, rows)

    @property
    def raised(self):
        """Steps that raised an error were not asked for."""
        return self.skipped if self.case["nonfinite"] == "raise" else 0

    def one(self, name, g, group, lr, rows):
        case, options = self.case, self.opt._options
        g = -g if group["maximize"] else g
        if case["clip_value"]:
            g = np.clip(g, -case["clip_value"], case["clip_value"])
        decay = 0.0 if case["exclude_from_weight_decay"] and name == "bias" else group["weight_decay"]
        decoupled = group["decoupled_weight_decay"]
        self.steps[name] += 1
        lazy = name == "table" and case["rows"] and case["sparse"] == "lazy"
        at = rows if lazy else ...
        given = [None if each is None else each[at] for each in (self.p[name], *self.state[name])]
        p, m, v, v_max = given
        settings = {
            key: group[key] for key in ("momentum_decay", "alpha", "alpha_warmup", "beta3_warmup") if key in group
        }
        p, m, v, v_max = exact_member(
            options.member,
            p,
            g[at],
            m,
            v,
            v_max,
            step=self.steps[name],
            lr=lr,
            betas=group["betas"],
            eps=group.get("eps", 0.0),
            convention=case["convention"],
            eps_root=case["eps_root"],
            l2=0.0 if decoupled else decay,
            decoupled=decay / (lr if case["decouple_lr"] else 1.0) if decoupled else 0.0,
            **settings,
        )
        self.p[name][at] = p
        for held, value in zip(self.state[name], (m, v, v_max), strict=True):
            if held is not None:
                held[at] = value
        decay, taken = case["ema_decay"] or 0.0, self.steps[name]
        decay = min(decay, (1 + taken) / (10 + taken)) if case["ema_warmup"] else decay
        self.ema[name][at] += (1 - decay) * (p - self.ema[name][at])


def tolerance(case):
    """How far displacements may be apart, as a part of their norm."""
    stored = {case["params"] if not case["master_weights"] else "float32", str(case["moment_dtype"])}
    if case["member"] == "Lion" and any("float" in each and "32" not in each and "64" not in each for each in stored):
        return 0.9  # signs of first moments that are rounded
    if case["params"] in ("float16", "bfloat16") and not case["master_weights"] and case["rounding"] == "nearest":
        return 0.9  # small steps move nothing
    if any(word in str(case["moment_dtype"]) for word in ("bfloat16", "float16", "float8")):
        return 0.15
    return 1e-9 if case["params"] == "float64" and not case["rows"] else 2e-3


def rounded(case, start):
    """How far parameters of 16 bits go astray, as the root of the number of steps says."""
    unit = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(case["params"], 0.0)
    return 1e-9 + (0.0 if case["master_weights"] else math.sqrt(STEPS) * unit * np.linalg.norm(start))


def check(case):
    opt = made(case)
    exact, start = Exact(case, opt), {name: np.array(each, np.float64) for name, each in opt.params.items()}
    for number in range(STEPS):
        grads, dense, rows = gradients(case, number)
        finite = not (case["nonfinite"] != "propagate" and number % 10 == 7)
        if case["nonfinite"] == "raise" and not finite:
            with pytest.raises(FloatingPointError):
                opt.step(grads, grad_scale=case["grad_scale"])
        else:
            opt.step(grads, grad_scale=case["grad_scale"])
            if case["zero_grad"]:
                assert not any(np.any(each) for each in grads.values() if isinstance(each, np.ndarray))
        exact.step(number, dense, rows)
    opt.catch_up()
    assert {name: entry["step"] for name, entry in opt.state_dict()["state"].items()} == exact.steps
    assert opt.skipped_steps == (exact.skipped if case["nonfinite"] == "skip" else 0)
    for name, p in opt.params.items():
        masters = opt.masters[name].astype(np.float64)
        moved, wanted = masters - start[name], exact.p[name] - start[name]
        allowed = tolerance(case) * np.linalg.norm(wanted) + rounded(case, start[name])
        assert np.linalg.norm(moved - wanted) <= allowed, name
        if case["ema_decay"]:
            average = np.asarray(opt.ema[name], np.float64) - start[name]
            wanted = exact.ema[name] - start[name]
            allowed = tolerance(case) * np.linalg.norm(wanted) + rounded(case, start[name])
            assert np.linalg.norm(average - wanted) <= allowed, name
        if case["copy_dtype"]:
            dtype = ml_dtypes.bfloat16 if case["copy_dtype"] == "bfloat16" else np.float16
            np.testing.assert_array_equal(opt.copies[name], np.asarray(p, np.float32).astype(dtype), err_msg=name)


def cases():
    """Cases that hold every pair of values that is not refused; and the pairs that are."""
    rng = np.random.default_rng(0)
    default = {factor: values[0] for factor, values in FACTORS.items()}
    pairs = [
        ((one, left), (other, right))
        for one, other in itertools.combinations(FACTORS, 2)
        for left in FACTORS[one]
        for right in FACTORS[other]
    ]
    covered, chosen, refused = set(), [], []
    for pair in sorted(pairs, key=lambda pair: rng.random()):
        if pair in covered:
            continue
        fixed = dict(pair)
        case = default | fixed
        if is_refused(case) and not allowed_with_another(case, fixed):
            refused.append(fixed)
            continue
        case = allowed_with_another(case, fixed) if is_refused(case) else case
        # Other factors are drawn one by one, as long as the case stands.
        for factor in rng.permutation(list(FACTORS)):
            if factor not in fixed:
                other = case | {factor: FACTORS[factor][rng.integers(len(FACTORS[factor]))]}
                case = case if is_refused(other) else other
        chosen.append(case)
        covered.update(itertools.combinations([(factor, case[factor]) for factor in FACTORS], 2))
    return chosen, refused


def allowed_with_another(case, fixed):
    """The case with one more value that makes it stand, as exact rows need decay without L2; None if there is none."""
    for factor in ("member", "decoupled_weight_decay", "params", "convention", "ema_decay"):
        for value in FACTORS[factor]:
            other = case | {factor: value}
            if factor not in fixed and not is_refused(other):
                return other
    return None


@pytest.fixture(scope="module")
def all_cases():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastadam.optimizer.warn_of_vanishing", lambda *_: None)
        return cases()


@pytest.fixture
def on_numpy(monkeypatch):
    """Optimizers run the NumPy reference."""
    names = ("tables", "address", "is_captured", "launcher", "squares", "clip", "each", "catch_up", "copy_out")
    backend = SimpleNamespace(DIRECT_FROM=cpu.DIRECT_FROM, **{name: getattr(reference, name) for name in names})
    monkeypatch.setattr("fastadam.optimizer.backend_of", lambda *_: backend)


@pytest.fixture(autouse=True)
def without_warnings_of_vanishing(monkeypatch):
    monkeypatch.setattr("fastadam.optimizer.warn_of_vanishing", lambda *_: None)


def test_every_pair_on_numpy(all_cases, on_numpy):
    chosen, refused = all_cases
    assert len(chosen) > 30
    assert len(refused) > 30
    failures = []
    for case in chosen:
        try:
            check(case)
        except Exception as error:
            different = {key: value for key, value in case.items() if value != FACTORS[key][0]}
            failures.append(f"{different}: {type(error).__name__} {str(error)[:300]}")
    assert not failures, f"{len(failures)} of {len(chosen)}\n" + "\n".join(failures)


def test_a_sample_of_pairs_compiled(all_cases):
    for case in all_cases[0][:6]:
        check(case)


@pytest.mark.long
def test_every_pair_compiled(all_cases):
    for case in all_cases[0]:
        check(case)
