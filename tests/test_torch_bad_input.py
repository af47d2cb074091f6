"""What `fastadam.torch` refuses, before anything is written."""

import re

import pytest
from torch_training import every, fused, names, torch


def refuse(opt, error, message, params=()):
    """Stepping raises, and leaves parameters as they are."""
    before = [p.detach().clone() for p in params]
    with pytest.raises(error, match=re.escape(message)):
        opt.step()
    assert all(torch.equal(p, value) for p, value in zip(params, before, strict=True))


def with_gradients(*shapes, dtype=torch.float32):
    params = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    for p in params:
        p.grad = torch.ones_like(p)
    return params


@names
@pytest.mark.parametrize(
    "settings",
    [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": -1.0}, {"weight_decay": -1.0}],
    ids=lambda each: next(iter(each)),
)
def test_errors_of_torch_are_torchs(name, settings):
    with pytest.raises(ValueError, match=r"Invalid") as theirs:
        getattr(torch.optim, name)([torch.zeros(1)], **settings)
    with pytest.raises(ValueError, match=re.escape(str(theirs.value))):
        getattr(fused, name)([torch.zeros(1)], **settings)


@every
def test_parameters_that_torch_refuses(name):
    make_opt = getattr(fused, name)
    p = torch.zeros(2, requires_grad=True)
    with pytest.raises(ValueError, match="empty parameter list"):
        make_opt([])
    with pytest.raises(TypeError, match="iterable of Tensors"):
        make_opt(p)
    with pytest.raises(ValueError, match="more than one parameter group"):
        make_opt([{"params": [p]}, {"params": [p]}])
    with pytest.raises(ValueError, match="non-leaf"):
        make_opt([p * 2])


@every
def test_sets_are_refused_because_states_are_saved_by_position(name):  # pytorch#6031
    make_opt = getattr(fused, name)
    with pytest.raises(TypeError, match="`params` must have an order, got a set: a saved state would go to other"):
        make_opt({torch.zeros(1), torch.zeros(1)})
    with pytest.raises(TypeError, match="ordered collections"):
        make_opt([{"params": {torch.zeros(1)}}])


@every
def test_unknown_and_wrong_options(name):
    make_opt = getattr(fused, name)
    mistakes = {"max_grad_nrom": "max_grad_norm", "weight_decy": "weight_decay", "b1": "betas", "wd": "weight_decay"}
    for wrong, meant in mistakes.items():
        message = rf"{name}\(\) got an unexpected keyword argument '{wrong}'. Did you mean '{meant}'\?"
        with pytest.raises(TypeError, match=message):
            make_opt([torch.zeros(1)], **{wrong: 1.0})
    with pytest.raises(ValueError, match="`max_grad_norm` must be > 0"):
        make_opt([torch.zeros(1)], max_grad_norm=0.0)
    with pytest.raises(TypeError, match="`moment_dtype` must be"):
        make_opt([torch.zeros(1)], moment_dtype=[1, 2, 3])


@every
def test_a_class_of_a_user_is_answered_with_the_options_of_ours(name):
    class Own(getattr(fused, name)):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    for wrong, meant in (("weight_decy", "weight_decay"), ("max_grad_nrom", "max_grad_norm"), ("arg", None)):
        question = f". Did you mean '{meant}'?" if meant else ""
        message = f"Own() got an unexpected keyword argument '{wrong}'{question}"
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            Own([torch.zeros(1)], **{wrong: 1.0})


@pytest.mark.parametrize("name", ["Lion", "AdEMAMix"])
def test_hyperparameters_of_classes_that_torch_lacks(name):
    make_opt, p = getattr(fused, name), [torch.zeros(1)]
    for settings, error in (
        ({"lr": -1.0}, "`lr` must be >= 0"),
        ({"lr": torch.zeros(2)}, "`lr` must be a number or a tensor of one element"),
        ({"betas": (0.9,)}, "`betas` must be"),
        ({"weight_decay": -0.1}, "`weight_decay` must be >= 0"),
        ({"maximize": 1}, "`maximize` must be True or False"),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(error)):
            make_opt(p, **settings)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lr", None, "must be a real number, got None"),
        ("lr", "0.5", "must be a real number, got '0.5'"),
        ("lr", float("nan"), "must be finite, got nan"),
        ("lr", torch.ones(2), "must be a number or a tensor of one element in memory, got Tensor of shape (2,) on cpu"),
        ("lr", torch.tensor(0.1, device="meta"), "must be a number or a tensor of one element in memory, got Tensor"),
        ("lr", torch.tensor(1j), "must be a real number, got 1j"),
        ("eps", None, "must be a real number, got None"),
        ("weight_decay", float("inf"), "must be finite, got inf"),
        ("maximize", "no", "must be a real number, got 'no'"),
        ("betas", (0.9,), "must be 2 numbers in [0, 1), got (0.9,)"),
        ("betas", (0.9, 0.9, 0.9), "must be 2 numbers in [0, 1), got (0.9, 0.9, 0.9)"),
        ("betas", (1.0, 0.9), "must be 2 numbers in [0, 1), got (1.0, 0.9)"),
        ("betas", (torch.tensor(0.5), -0.5), "must be 2 numbers in [0, 1), got (0.5, -0.5)"),
        ("betas", 0.9, "must be 2 numbers in [0, 1), got 0.9"),
        ("betas", None, "must be a real number, got None"),
    ],
)
@pytest.mark.parametrize("steps", [0, 2])
def test_settings_that_are_edited(key, value, message, steps):
    params = with_gradients(2, 3)
    opt = fused.AdamW([{"params": params[:1]}, {"params": params[1:]}], lr=0.1)
    for _ in range(steps):
        opt.step()
    opt.param_groups[1][key] = value
    refuse(opt, (TypeError, ValueError), f"`param_groups[1]['{key}']` {message}", params)
    opt.param_groups[1][key] = opt.defaults[key]
    opt.step()
    assert opt.state[params[1]]["step"] == steps + 1


@names
def test_differentiable(name):
    with pytest.raises(ValueError, match="`differentiable` must be False"):
        getattr(fused, name)([torch.zeros(1)], differentiable=True)
    params = with_gradients(2)
    opt = getattr(fused, name)([{"params": params, "differentiable": True}])
    refuse(opt, ValueError, "`differentiable` must be False, got True in param_groups[0]", params)


def test_parameters_that_cannot_be_stepped():
    good = with_gradients(3)
    meta = torch.zeros(2, device="meta", requires_grad=True)
    meta.grad = torch.zeros(2, device="meta")
    refuse(fused.Adam([*good, meta]), TypeError, "`param_groups[0]['params'][1]` must be in CPU or CUDA memory", good)
    bad = with_gradients(2, dtype=torch.complex64)
    named = [("good", good[0]), ("bad", bad[0])]
    refuse(fused.Adam(named), TypeError, "`bad` must be float32, float64, bfloat16 or float16", good)
    gaps = torch.zeros(4, 6)[:, :5].requires_grad_()
    gaps.grad = torch.ones(4, 5)
    refuse(fused.Adam([*good, gaps]), ValueError, "must be dense to be stepped where it lies, got strides (6, 1)", good)
    negated = torch._neg_view(torch.ones(2)).requires_grad_()
    negated.grad = torch.ones(2)
    refuse(fused.Adam([*good, negated]), TypeError, "must hold its values in memory, got a negated view", good)


@pytest.mark.parametrize("options", [{}, {"nonfinite": "raise"}, {"zero_grad": True}], ids=str)
def test_gradients_that_are_negated_views_are_what_torch_shows(options):
    params = [torch.ones(2), torch.ones(3), torch.ones(4)]
    twins = [p.clone() for p in params]
    opt, other = fused.Adam(params, lr=0.1, **options), fused.Adam(twins, lr=0.1, **options)
    for step in range(3):
        for p, twin in zip(params, twins, strict=True):
            values = torch.arange(1.0, 1.0 + len(p))
            # As the gradient of an imaginary part, whose memory has the opposite values.
            p.grad, twin.grad = torch._neg_view(values), -values
        if step == 2:
            params[1].grad = twins[1].grad = None
        opt.step()
        other.step()
    assert all(torch.equal(p, twin) for p, twin in zip(params, twins, strict=True))
    assert ("zero_grad" in options) == (not params[0].grad.any())


def test_negated_gradients_of_the_function():
    numbers = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8}
    p, twin = torch.ones(3), torch.ones(3)
    values = torch.tensor([1.0, -2.0, 3.0])
    for q, gradient in ((p, torch._neg_view(values)), (twin, -values)):
        fused.adamw_step([q], [gradient], [torch.zeros(3)], [torch.zeros(3)], [1], **numbers)
    assert torch.equal(p, twin)


def test_a_parameter_listed_twice():
    (p,) = with_gradients(2)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        opt = fused.Adam([p, p])
    refuse(opt, ValueError, "`param_groups[0]['params'][1]` must be in its group once", [p])


def test_gradients_that_do_not_fit():
    for moved in (torch.ones(3, dtype=torch.float64), torch.ones(4)):
        params = with_gradients(2, 3)
        opt = fused.Adam(params, lr=0.1)
        opt.step()
        params[1].grad.data = moved
        refuse(opt, (TypeError, ValueError), "`param_groups[0]['params'][1].grad` must", params)
        params[1].grad = torch.ones(3)
        opt.step()
        assert opt.state[params[0]]["step"] == 2


def test_a_parameter_of_another_shape_than_its_state():
    params = with_gradients(2, 3)
    opt = fused.Adam(params, lr=0.1)
    opt.step()
    params[1].data = torch.zeros(4)
    params[1].grad = torch.ones(4)
    message = "`state of param_groups[0]['params'][1]['exp_avg']` must have shape (4,) like its parameter, got (3,)"
    refuse(opt, ValueError, message, params)


@pytest.mark.parametrize("as_arrays", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values[:4], "`state of param_groups[0]['params'][1]['exp_avg']` must have shape (4,)"),
        (lambda values: values.view(torch.float64), "`state of param_groups[0]['params'][1]['exp_avg']` must have"),
        (lambda values: values[::2], "`param_groups[0]['params'][1]` must be dense"),
    ],
    ids=["size", "dtype", "strides"],
)
def test_a_parameter_that_is_another_and_begins_where_it_began(change, message, as_arrays):
    params = with_gradients(2, 8)
    opt = fused.Adam(params, lr=0.1, nonfinite="raise" if as_arrays else "propagate")
    opt.step()
    params[1].data = change(params[1].data)
    params[1].grad = torch.ones_like(params[1])
    refuse(opt, ValueError, message, params)


class Wrapper(torch.Tensor):
    """A tensor without memory, of which nothing can be asked."""

    @staticmethod
    def __new__(cls, shape):
        return torch.Tensor._make_wrapper_subclass(cls, shape)

    __torch_dispatch__ = classmethod(lambda cls, *_: NotImplemented)


@pytest.mark.parametrize(
    ("key", "make", "message"),
    [
        ("exp_avg", lambda: torch.zeros(5), "must have shape (3,)"),
        ("exp_avg", lambda: "zeros", "must be a tensor, got str"),
        ("exp_avg_sq", lambda: torch.zeros(3, dtype=torch.int32), "must be one of torch.float32"),
        ("exp_avg", lambda: torch.zeros(3, device="meta"), "must be in CPU or CUDA memory, got a tensor on meta"),
        ("exp_avg", lambda: torch.zeros(3).to_sparse(), "must be a strided tensor, got torch.sparse_coo"),
        ("exp_avg", lambda: torch._neg_view(torch.zeros(3)), "must hold its values in memory, got a negated view"),
        ("exp_avg", lambda: torch._efficientzerotensor(3), "must be a tensor with memory of its own"),
        ("exp_avg", lambda: Wrapper((3,)), "must be a tensor with memory of its own, got Wrapper"),
        ("step", lambda: Wrapper(()), "must be a number or a tensor of one element in memory, got Wrapper of shape ()"),
        ("step", lambda: torch.tensor(1.0, device="meta"), "must be a number or a tensor of one element in memory"),
        ("step", lambda: torch.zeros(3), "must be a number or a tensor of one element in memory, got Tensor of"),
        ("step", lambda: torch.tensor(1j), "must be a real number, got 1j"),
        ("step", lambda: None, "must be a real number, got None"),
    ],
)
@pytest.mark.parametrize("first", [True, False], ids=["first step", "later step"])
def test_states_that_do_not_fit(key, make, message, first):
    params = with_gradients(2, 3)
    opt = fused.Adam(params)
    opt.step()
    if first:
        saved = opt.state_dict()["state"]
        opt = fused.Adam(params)
        opt.state.update(zip(params, saved.values(), strict=True))
    opt.state[params[1]][key] = make()
    refuse(opt, TypeError if "shape (3" not in message else ValueError, f"[1]['{key}']` {message}", params)


@pytest.mark.parametrize("key", ["step", "mu_product"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("new", [True, False], ids=["new", "written"])
def test_counters_that_count_nothing(key, value, new):
    params = with_gradients(2, 3)
    opt = fused.NAdam(params)
    opt.step()
    opt.step()
    entry = opt.state[params[1]]
    right = entry[key].item()
    if new:
        entry[key] = torch.tensor(value)
    else:
        entry[key].fill_(value)
    if (key, value) != ("mu_product", -1.0):
        for _ in range(2):
            message = f"`state of param_groups[0]['params'][1]['{key}']` must be finite, and >= 0 if it counts steps"
            refuse(opt, ValueError, message, params)
    opt.state[params[1]][key].fill_(right)
    opt.step()
    assert entry["step"] == 3


def test_steps_are_counted_in_whatever_has_them():
    params = with_gradients(2, 3)
    opt = fused.Adam(params)
    for number in (3, 3.0, torch.tensor([3]), torch._neg_view(torch.tensor(-3.0)), torch.tensor(3.0).half()):
        opt.step()
        opt.state[params[1]]["step"] = number
        opt.step()
        assert opt.state[params[1]]["step"] == 4


def test_loading_a_state_of_other_groups():
    opt, other = fused.Adam(with_gradients(3)), fused.Adam(with_gradients(3, 2))
    with pytest.raises(ValueError, match="doesn't match the size"):
        opt.load_state_dict(other.state_dict())
    assert not opt._optimizer_load_state_dict_pre_hooks


def test_formats_that_do_not_go_together():
    params = with_gradients(3)
    refuse(fused.Adam(params, master_weights=True), ValueError, "`master_weights` needs bfloat16 parameters", params)
    refuse(fused.Adam(params, moment_dtype="float64"), ValueError, "`moment_dtype` must not be float64", params)
    refuse(fused.Adam(params, moment_dtype="float16"), ValueError, "`eps` must be >=", params)
