"""Every member and convention of the family: against other systems' own optimizers, an exact one, and torch's state."""

import math
import os

import numpy as np
import pytest
import systems
from oracle import bits, exact_member, memory, random_state
from training import make

import fastadam

CLASSES = {"adam": fastadam.Adam, "nadam": fastadam.NAdam, "adamax": fastadam.Adamax, "radam": fastadam.RAdam}

# --- 200 steps beside another system's own optimizer

LR, BETAS, EPS, DECAY = 1e-2, (0.9, 0.99), 1e-4, 0.05
OURS = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}
KERAS = {"learning_rate": LR, "beta_1": BETAS[0], "beta_2": BETAS[1], "epsilon": EPS, "weight_decay": DECAY}


def torch(name, **options):
    """(our class, our options, their run) where the options are called the same."""
    return name, options, lambda *data: systems.run_torch(name, *data, **OURS, **options)


def optax(ours, theirs, **options):
    settings = {**OURS, "eps_root": options.get("eps_root", 0.0)}
    return ours, {"convention": "optax", **options}, lambda *data: systems.run_optax(theirs, *data, **settings)


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
    "keras AdamW": keras("AdamW", "AdamW"),
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
    opt = getattr(fastadam, ours)(params, **OURS, **options)
    for gradient in grads:
        opt.step(gradient)
    rtol, atol = tolerance(case, dtype)
    for name, expected in theirs.items():
        np.testing.assert_allclose(opt.params[name], expected, rtol=rtol, atol=atol, err_msg=name)


# --- one float32 step from a state under way

# Largest error, in units in the last place of the result's magnitude without cancellation (see test_numerics.py).
ULPS = {"p": 5.0, "m": 1.0, "v": 3.0, "v_max": 4.0}
MEMBERS = {"torch": [*CLASSES], "optax": [*CLASSES], "keras": ["adam", "nadam", "adamax"]}
MEMBERS |= {"sklearn": ["adam"], "apex": ["adam"]}
KINDS = [(convention, member, False) for convention, members in MEMBERS.items() for member in members]
KINDS += [(convention, "adam", True) for convention in ("torch", "optax", "keras")]


def stepped(member, p, g, m, v, v_max, *, step, **settings):
    """The optimizer after one step from a state under way."""
    if member == "nadam":
        powers = 0.96 ** (np.arange(1.0, step) * settings["momentum_decay"])
        product = float(np.prod(settings["betas"][0] * (1 - 0.5 * powers)))
    else:
        product = settings.pop("momentum_decay")  # of no use
    if v_max is not None:
        settings["amsgrad"] = True
    opt = CLASSES[member](p.copy(), weight_decay=0.1, **settings)
    state = opt.state_dict()
    entry = {"step": step - 1, "exp_avg": m, "exp_avg_sq": v, "exp_inf": v, "max_exp_avg_sq": v_max}
    entry["mu_product"] = product
    opt.load_state_dict({**state, "state": {0: {key: entry[key] for key in state["state"][0]}}})
    opt.step(g)
    return opt


@pytest.mark.parametrize("decay", [0.0, 0.1], ids=["decoupled", "L2"])
@pytest.mark.parametrize("step", [1, 5, 6, 1_000])  # RAdam rectifies from its sixth step on
@pytest.mark.parametrize(("convention", "member", "amsgrad"), KINDS)
def test_one_float32_step_is_within_ulps_of_the_exact_one(convention, member, amsgrad, step, decay):
    p, g, m, v = random_state(2_000, seed=step)
    v_max = random_state(2_000, seed=step + 1)[3] if amsgrad else None
    settings = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-2, "step": step, "convention": convention}
    settings["momentum_decay"] = {"torch": 4e-3, "keras": 1.0}.get(convention, math.inf)
    settings["eps_root"] = 1e-3 if convention == "optax" and member != "adamax" else 0.0
    expected = exact_member(member, p, g, m, v, v_max, l2=decay, decoupled=0.1 - decay, **settings)
    g_size = np.abs(g) + decay * np.abs(p)
    moved, _, v_size, _ = exact_member(member, 0 * p, g_size, np.abs(m), v, v_max, **settings)
    scales = np.abs(p) + np.abs(moved), np.abs(m) + g_size, v_size, expected[3]
    opt = stepped(member, p, g, m, v, v_max, decoupled_weight_decay=decay == 0.0, **settings)
    for (name, most), exact, scale in zip(ULPS.items(), expected, scales, strict=True):
        if exact is not None:
            ulp = np.spacing(scale.astype(np.float32)).astype(np.float64)
            assert np.max(np.abs(getattr(opt.buffers, name) - exact) / ulp) <= most, name


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
        assert (group["eps"], group["decoupled_weight_decay"]) == (eps, decoupled)
        assert group.get("momentum_decay") == (momentum_decay if member == "nadam" else None)
        chosen = {"eps": 0.5, "decoupled_weight_decay": not decoupled}
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


@pytest.mark.parametrize(
    ("name", "options"), [("Adam", {"amsgrad": True}), ("NAdam", {}), ("Adamax", {}), ("RAdam", {})]
)
def test_state_has_torchs_names_and_resumes_to_the_last_bit(name, options):
    shapes = {"w": (3, 5), "b": ()}
    kind = getattr(fastadam, name)
    straight = kind(make(shapes), betas=(0.8, 0.9), weight_decay=0.1, **options)
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


def test_second_moment_without_memory():
    pytest.importorskip("torch")
    params, grads = {"w": np.ones(1, np.float32)}, [{"w": np.array([size], np.float32)} for size in (100.0, 0.01)]
    theirs = systems.run_torch("Adam", params, grads, betas=(0.9, 0.0))
    opt = fastadam.Adam(params, betas=(0.9, 0.0))
    for gradient in grads:
        opt.step(gradient)
    np.testing.assert_allclose(opt.params["w"], theirs["w"], rtol=1e-5)
