"""Every member and convention of the family: against other systems' own optimizers, an exact one, and torch's state."""

import inspect
import math
import os
import pydoc

import numpy as np
import pytest
import systems
from oracle import bits, exact_member, memory, random_state
from training import make

import fastadam
from fastadam.settings.options import OPTION_NAMES, OptionKeywords

CLASSES = {"adam": fastadam.Adam, "nadam": fastadam.NAdam, "adamax": fastadam.Adamax, "radam": fastadam.RAdam}
CLASSES |= {"lion": fastadam.Lion, "ademamix": fastadam.AdEMAMix}

# --- 200 steps beside another system's own optimizer

LR, BETAS, EPS, DECAY = 1e-2, (0.9, 0.99), 1e-4, 0.05
OURS = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}
KERAS = {"learning_rate": LR, "beta_1": BETAS[0], "beta_2": BETAS[1], "epsilon": EPS, "weight_decay": DECAY}


KERAS_LION = {key: value for key, value in KERAS.items() if key != "epsilon"}


def torch(name, **options):
    """(our class, our options, their run) where the options are called the same."""
    return name, options, lambda *data: systems.run_torch(name, *data, **OURS, **options)


def optax(ours, theirs, **options):
    settings = {**OURS, "eps_root": options.get("eps_root", 0.0)}
    return ours, {"convention": "optax", **options}, lambda *data: systems.run_optax(theirs, *data, **settings)


def lion(**options):
    """Lion has no eps, which `None` leaves out."""
    settings = {key: value for key, value in OURS.items() if key != "eps"}
    return "Lion", {"eps": None, **options}, lambda *data: systems.run_optax("lion", *data, **settings)


def ademamix(warmups=None, eps_root=0.0, **options):
    ours = {"betas": (*BETAS, 0.999), "alpha": 3.0}
    settings = {**OURS, **ours, "eps_root": eps_root, "warmups": warmups}
    options = {**ours, **options} | ({"eps_root": eps_root} if eps_root else {})
    if warmups:
        options["alpha_warmup"], options["beta3_warmup"] = warmups
    return "AdEMAMix", options, lambda *data: systems.run_optax("ademamix", *data, **settings)


def keras(ours, theirs, **options):
    settings = {**KERAS, **options}
    return ours, {"convention": "keras", **options}, lambda *data: systems.run_keras(theirs, *data, **settings)


def sklearn(*data):
    return systems.run_sklearn(*data, lr=LR, betas=BETAS, eps=EPS, l2=DECAY)


def apex(params, grads):
    """Apex's formula, as it cannot be installed everywhere: the decay is a part of the update that lr multiplies."""
    results = {}
    for name, p in params.items():
        state = (p, np.zeros_like(p), np.zeros_like(p), None)
        for step, gradient in enumerate(grads, 1):
            p, *moments = state
            state = exact_member(
                "adam", p, gradient[name], *moments, step=step, lr=LR, betas=BETAS, eps=EPS, decoupled=DECAY
            )
        results[name] = state[0]
    return results


SYSTEMS = {
    "torch Adam": torch("Adam"),
    "torch AdamW": torch("AdamW"),
    "torch amsgrad": torch("Adam", amsgrad=True),
    "torch maximize": torch("Adam", maximize=True),
    "torch AdamW amsgrad maximize": torch("AdamW", amsgrad=True, maximize=True),
    "torch NAdam": torch("NAdam", momentum_decay=4e-3),
    "torch NAdam decoupled": torch("NAdam", momentum_decay=4e-3, decoupled_weight_decay=True),
    "torch NAdam maximize": torch("NAdam", maximize=True),
    "torch Adamax": torch("Adamax"),
    "torch Adamax maximize": torch("Adamax", maximize=True),
    "torch RAdam": torch("RAdam"),
    "torch RAdam maximize": torch("RAdam", maximize=True),
    "torch RAdam decoupled": torch("RAdam", decoupled_weight_decay=True),
    "optax adamw": optax("AdamW", "adamw"),
    "optax adamw eps_root": optax("Adam", "adamw", eps_root=1e-3),
    "optax amsgrad": optax("Adam", "amsgrad", amsgrad=True),
    "optax amsgrad eps_root": optax("Adam", "amsgrad", amsgrad=True, eps_root=1e-3),
    "optax nadamw": optax("NAdam", "nadamw"),
    "optax adamaxw": optax("Adamax", "adamaxw"),
    "optax radam": optax("RAdam", "radam"),
    "optax lion": lion(),
    "optax lion, its convention": lion(convention="optax"),
    "optax ademamix": ademamix(),
    "optax ademamix with warm-ups": ademamix(warmups=(60, 150)),
    "optax ademamix eps_root": ademamix(convention="optax", eps_root=1e-3),
    "keras AdamW": keras("AdamW", "AdamW"),
    "keras Lion": (
        "Lion",
        {"eps": None, "convention": "keras"},
        lambda *data: systems.run_keras("Lion", *data, **KERAS_LION),
    ),
    "keras amsgrad": keras("Adam", "Adam", amsgrad=True),
    "keras Nadam": keras("NAdam", "Nadam"),
    "keras Adamax": keras("Adamax", "Adamax"),
    "sklearn": ("Adam", {"convention": "sklearn"}, sklearn),
    "apex": ("Adam", {"convention": "apex"}, apex),
}


def tolerance(case, dtype):
    """By how much float32 runs of 200 steps may differ: their roundings fall in other places."""
    if dtype == "float64":
        return 0.0, 1e-12
    decoupled = case.startswith(("optax", "keras", "apex")) or "AdamW" in case or "decoupled" in case
    return 1e-5, 5e-5 if decoupled else 1e-5


# In float32 Optax's RAdam subtracts powers of beta2 that are almost equal.
RUNS = [
    (case, dtype) for case in SYSTEMS for dtype in ("float64", "float32") if (case, dtype) != ("optax radam", "float32")
]


@pytest.mark.parametrize(("case", "dtype"), RUNS)
def test_200_steps_as_the_other_system_takes_them(case, dtype, tmp_path, monkeypatch):
    ours, options, run = SYSTEMS[case]
    system = case.split()[0]
    os.environ.setdefault("KERAS_BACKEND", "torch")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))  # where importing Keras writes a file
    for module in {"keras": ["torch", "keras"], "apex": []}.get(system, [system]):
        pytest.importorskip(module)
    shapes = {"w": (5, 7), "b": (), "k": 11}
    params = make(shapes, dtype=np.dtype(dtype).type)
    # Gradients of all sizes, down to those that are small beside eps.
    sizes = {name: 10.0 ** np.random.default_rng(1).uniform(-5, 0.5, shape) for name, shape in shapes.items()}
    grads = [
        {name: np.asarray(gradient * sizes[name], dtype) for name, gradient in make(shapes, seed).items()}
        for seed in range(2, 202)
    ]
    theirs = run(params, grads)
    settings = {key: value for key, value in {**OURS, **options}.items() if value is not None}
    opt = getattr(fastadam, ours)(params, **settings)
    for gradient in grads:
        opt.step(gradient)
    rtol, atol = tolerance(case, dtype)
    for name, expected in theirs.items():
        np.testing.assert_allclose(opt.params[name], expected, rtol=rtol, atol=atol, err_msg=name)


# --- one float32 step from a state under way

# Largest error, in units in the last place of the result's magnitude without cancellation (see test_numerics.py).
ULPS = {"p": 5.0, "m": 1.0, "v": 3.0, "v_max": 4.0, "m_slow": 1.0}
MEMBERS = {"torch": [*CLASSES], "optax": [*CLASSES], "keras": ["adam", "nadam", "adamax", "lion"]}
MEMBERS |= {"sklearn": ["adam"], "apex": ["adam"]}
KINDS = [(convention, member, False) for convention, members in MEMBERS.items() for member in members]
KINDS += [(convention, "adam", True) for convention in ("torch", "optax", "keras")]


WARM_UPS = {"alpha_warmup": 8, "beta3_warmup": 10}  # one of them is over at step 1,000 only
HAS_NOT = {"lion": ("eps", "eps_root"), "adamax": ("eps_root",)}


def settings_of(member, convention, step):
    """Settings that a member has."""
    settings = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-2, "step": step, "convention": convention}
    settings["eps_root"] = 1e-3 if convention == "optax" else 0.0
    if member == "nadam":
        settings["momentum_decay"] = {"torch": 4e-3, "keras": 1.0}.get(convention, math.inf)
    if member == "ademamix":
        settings |= {"betas": (0.9, 0.999, 0.99), "alpha": 3.0, **WARM_UPS}
    return {key: 0.0 if key in HAS_NOT.get(member, ()) else value for key, value in settings.items()}


def stepped(member, p, g, m, v, other, *, step, **settings):
    """The optimizer after one step from a state under way; `other` is the largest or the slow moment."""
    for key in HAS_NOT.get(member, ()):
        del settings[key]
    if other is not None and member == "adam":
        settings["amsgrad"] = True
    opt = CLASSES[member](p.copy(), weight_decay=0.1, **settings)
    state = opt.state_dict()
    entry = {"step": step - 1, "exp_avg": m, "exp_avg_sq": v, "exp_inf": v}
    entry |= {"max_exp_avg_sq": other, "exp_avg_slow": other}
    if member == "nadam":
        powers = 0.96 ** (np.arange(1.0, step) * settings["momentum_decay"])
        entry["mu_product"] = float(np.prod(settings["betas"][0] * (1 - 0.5 * powers)))
    opt.load_state_dict({**state, "state": {0: {key: entry[key] for key in state["state"][0]}}})
    opt.step(g)
    return opt


@pytest.mark.parametrize("decay", [0.0, 0.1], ids=["decoupled", "L2"])
@pytest.mark.parametrize("step", [1, 5, 6, 1_000])  # RAdam rectifies from its sixth step on
@pytest.mark.parametrize(("convention", "member", "amsgrad"), KINDS)
def test_one_float32_step_is_within_ulps_of_the_exact_one(convention, member, amsgrad, step, decay):
    p, g, m, v = random_state(2_000, seed=step)
    slow = member == "ademamix"
    other = random_state(2_000, seed=step + 1)[2 if slow else 3] if amsgrad or slow else None
    settings = settings_of(member, convention, step)
    expected = exact_member(member, p, g, m, v, other, l2=decay, decoupled=0.1 - decay, **settings)
    g_size, others = np.abs(g) + decay * np.abs(p), None if other is None else np.abs(other)
    moved, _, v_size, _ = exact_member(member, 0 * p, g_size, np.abs(m), v, others, **settings)
    scales = np.abs(p) + np.abs(moved), np.abs(m) + g_size, v_size, others + g_size if slow else expected[3]
    opt = stepped(member, p, g, m, v, other, decoupled_weight_decay=decay == 0.0, **settings)
    fourth = "m_slow" if slow else "v_max" if amsgrad else ""
    names = "p", "m", "v" if member != "lion" else "", fourth
    for name, exact, scale in zip(names, expected, scales, strict=True):
        if not name:
            continue
        ulp = np.spacing(scale.astype(np.float32)).astype(np.float64)
        assert np.max(np.abs(getattr(opt.buffers, name) - exact) / ulp) <= ULPS[name], name


# --- presets and state

PRESETS = {  # eps, decoupled decay, momentum decay
    "torch": (1e-8, False, 4e-3),
    "optax": (1e-8, True, math.inf),
    "keras": (1e-7, True, 1.0),
    "sklearn": (1e-8, False, None),
    "apex": (1e-8, True, None),
}


@pytest.mark.parametrize("convention", PRESETS)
def test_defaults_of_a_convention(convention):
    eps, decoupled, momentum_decay = PRESETS[convention]
    for member in MEMBERS[convention]:
        group = CLASSES[member](np.ones(3), convention=convention).param_groups[0]
        has_eps, always_decoupled = member != "lion", member in ("lion", "ademamix")
        assert group["decoupled_weight_decay"] == (decoupled or always_decoupled)
        assert group.get("eps") == (eps if has_eps else None)
        assert group.get("momentum_decay") == (momentum_decay if member == "nadam" else None)
        chosen = {"decoupled_weight_decay": not group["decoupled_weight_decay"], **({"eps": 0.5} if has_eps else {})}
        group = CLASSES[member](np.ones(3), convention=convention, **chosen).param_groups[0]
        assert {key: group[key] for key in chosen} == chosen
    assert fastadam.AdamW(np.ones(3), convention=convention).param_groups[0]["decoupled_weight_decay"] is True


def test_defaults_are_those_of_torch():
    torch = pytest.importorskip("torch")
    for name in ("Adam", "AdamW", "NAdam", "Adamax", "RAdam"):
        theirs = getattr(torch.optim, name)([torch.nn.Parameter(torch.ones(1))]).param_groups[0]
        ours = getattr(fastadam, name)(np.ones(1)).param_groups[0]
        assert {key: theirs[key] for key in ours if key in theirs and key != "params"} == {
            key: value for key, value in ours.items() if key in theirs and key != "params"
        }, name


STATES = [("Adam", {"amsgrad": True}), ("NAdam", {}), ("Adamax", {}), ("RAdam", {}), ("Lion", {})]
STATES += [("AdEMAMix", {"alpha_warmup": 9, "beta3_warmup": 10})]


@pytest.mark.parametrize(("name", "options"), STATES)
def test_state_has_torchs_names_and_resumes_to_the_last_bit(name, options):
    shapes = {"w": (3, 5), "b": ()}
    kind = getattr(fastadam, name)
    betas = (0.8, 0.9, 0.99)[: 3 if name == "AdEMAMix" else 2]
    straight = kind(make(shapes), betas=betas, weight_decay=0.1, **options)
    for seed in range(1, 8):
        straight.step(make(shapes, seed))
    saved, params = straight.state_dict(), {key: view.copy() for key, view in straight.params.items()}
    resumed = kind(params, **options)
    resumed.load_state_dict(saved)
    for seed in range(8, 12):
        # Small ones, so that the largest second moment is not that of the last step.
        for opt in (straight, resumed):
            opt.step({key: gradient * np.float32(0.1) for key, gradient in make(shapes, seed).items()})
    assert memory(resumed) == memory(straight)
    assert resumed.state_dict()["param_groups"] == straight.state_dict()["param_groups"]
    more = {"Lion": set(), "AdEMAMix": {"exp_avg_sq", "exp_avg_slow"}}  # what torch has not
    if name in more:
        assert saved["state"]["w"].keys() == {"step", "exp_avg", *more[name]}
        return
    torch = pytest.importorskip("torch")
    tensor = torch.nn.Parameter(torch.ones(2))
    tensor.grad = torch.ones(2)
    theirs = getattr(torch.optim, name)([tensor], **options)
    theirs.step()
    assert saved["state"]["w"].keys() == theirs.state_dict()["state"][0].keys()


@pytest.mark.parametrize("amsgrad", [True, False])
def test_loaded_state_decides_on_amsgrad(amsgrad):
    betas = (0.9, 0.5)  # the second moment falls
    saved, resumed = (fastadam.Adam(make({"w": 5}), betas=betas, amsgrad=of) for of in (amsgrad, not amsgrad))
    saved.step({"w": np.full(5, 3.0, np.float32)})
    resumed.load_state_dict(saved.state_dict())
    for opt in (saved, resumed):
        opt.params["w"] = 1.0
        opt.step(make({"w": 5}, 1))
    assert bits(resumed.params) == bits(saved.params)
    assert bits(resumed.state_dict()["state"]["w"]) == bits(saved.state_dict()["state"]["w"])


def test_defaults_of_lion_and_ademamix_are_those_of_optax():
    optax = pytest.importorskip("optax")
    for ours, theirs in ((fastadam.Lion, optax.lion), (fastadam.AdEMAMix, optax.contrib.ademamix)):
        group = ours(np.ones(3), convention="optax").param_groups[0]
        wanted = {key: value.default for key, value in inspect.signature(theirs).parameters.items()}
        assert group["betas"] == tuple(value for key, value in wanted.items() if key in ("b1", "b2", "b3"))
        assert [group.get(key) for key in ("alpha", "eps")] == [wanted.get(key) for key in ("alpha", "eps")]


def test_lion_moves_by_the_sign_and_keeps_no_second_moment():
    params = {"w": np.array([1.0, 1.0, 1.0, np.nan], np.float32)}
    opt = fastadam.Lion(params, lr=0.5)
    opt.step({"w": np.array([3.0, -0.0, -1e-30, 1.0], np.float32)})
    np.testing.assert_array_equal(params["w"], [0.5, 1.0, 1.5, np.nan])
    assert set(opt.buffers.flats) - {"g"} == {"m"}
    assert opt.memory_usage().nbytes == 4 * 12


def test_a_weight_must_be_finite_and_a_number_of_steps_need_not_be():
    with pytest.raises(ValueError, match="`alpha` must be finite, got inf"):
        fastadam.AdEMAMix(np.ones(3), alpha=math.inf)
    opt, adam = fastadam.AdEMAMix(make({"w": 9}), alpha_warmup=math.inf), fastadam.Adam(make({"w": 9}))
    for one in (opt, adam):
        one.step(make({"w": 9}, 1))
    assert bits(opt.params) == bits(adam.params)


def test_ademamix_without_a_slow_moment_is_adamw():
    opt, adam = fastadam.AdEMAMix(make({"w": 9}), alpha=0.0), fastadam.AdamW(make({"w": 9}), weight_decay=0.0)
    for seed in range(5):
        for one in (opt, adam):
            one.step(make({"w": 9}, seed))
    assert bits(opt.params) == bits(adam.params)


# --- signatures


def test_signatures_name_all_options():
    assert OptionKeywords.__annotations__.keys() == OPTION_NAMES | {"flat", "shard", "bucket_bytes", "memory"}
    for name in ("Adam", "AdamW", "NAdam", "Adamax", "RAdam", "Lion", "AdEMAMix"):
        kind = getattr(fastadam, name)
        parameters = inspect.signature(kind).parameters
        assert next(iter(parameters)) == "params"
        assert parameters["options"].annotation == "Unpack[OptionKeywords]"
        assert {"lr", "betas", "weight_decay", "maximize"} <= parameters.keys()
        assert not parameters.keys() & OptionKeywords.__annotations__.keys()
        assert f"class {name}(" in pydoc.render_doc(kind, renderer=pydoc.plaintext)
        with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected keyword argument 'fused'"):
            kind(np.ones(3), fused=True)


def test_second_moment_without_memory():
    pytest.importorskip("torch")
    params, grads = {"w": np.ones(1, np.float32)}, [{"w": np.array([size], np.float32)} for size in (100.0, 0.01)]
    theirs = systems.run_torch("Adam", params, grads, betas=(0.9, 0.0))
    opt = fastadam.Adam(params, betas=(0.9, 0.0))
    for gradient in grads:
        opt.step(gradient)
    np.testing.assert_allclose(opt.params["w"], theirs["w"], rtol=1e-5)
