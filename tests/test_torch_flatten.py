"""`fastadam.torch.flatten_`: parameters as views of one flat tensor, with the bits of a training without."""

import copy

import pytest
from refusal import exactly

torch = pytest.importorskip("torch")
import fastadam.torch  # noqa: E402
from fastadam.torch import flatten_  # noqa: E402

grads_or_not = pytest.mark.parametrize("grads", [False, True])


class Model(torch.nn.Module):
    """A convolution in channels_last, tied weights, a frozen parameter, scalar and empty ones, one of another dtype."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 5, 3, padding=1).to(memory_format=torch.channels_last)
        self.norm = torch.nn.BatchNorm2d(5)
        self.embedding = torch.nn.Embedding(11, 5)
        self.head = torch.nn.Linear(5, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        self.wide = torch.nn.Parameter(torch.ones(7, dtype=torch.float64))
        self.empty = torch.nn.Parameter(torch.ones(0, 3))

    def forward(self, images, words):
        features = self.norm(self.convolution(images)).mean((2, 3)) + self.embedding(words)
        return self.head(self.scale * features) * self.wide.mean().float()


def train(model, optimizer, steps=6, zero=lambda model: model.zero_grad(set_to_none=False)):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        images, words = torch.randn(4, 3, 6, 6, generator=generator), torch.arange(4)
        zero(model)
        torch.nn.functional.cross_entropy(model(images, words), words).backward()
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


@grads_or_not
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_training_has_the_same_bits(kind, grads):
    plain, flattened = Model(), Model()
    flatten_(flattened, grads=grads)
    same(train(flattened, kind(flattened.parameters(), lr=0.1)), train(plain, kind(plain.parameters(), lr=0.1)))


def test_stepping_the_flat_tensors_has_the_same_bits():
    plain, flattened = Model(), Model()
    flats = flatten_(flattened, grads=True)
    ours = train(flattened, torch.optim.AdamW(flats, lr=0.1, weight_decay=0.1))
    same(ours, train(plain, torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=0.1)))


def test_an_optimizer_that_was_made_before_goes_on():
    plain, flattened = Model(), Model()
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1) for model in (plain, flattened)]
    for model, optimizer in zip((plain, flattened), optimizers, strict=True):
        train(model, optimizer)
    flatten_(flattened, grads=True)
    same(*(train(model, optimizer) for model, optimizer in zip((plain, flattened), optimizers, strict=True)))


class Ours:
    """`adamw_step` on parameters with their gradients."""

    def __init__(self, params):
        self.params = params
        self.state = [[torch.zeros_like(p) for p in params] for _ in range(2)]
        self.steps = [torch.tensor(0.0) for _ in params]

    def step(self):
        grads = [p.grad for p in self.params]
        hyper = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.1, "eps": 1e-8}
        fastadam.torch.adamw_step(self.params, grads, *self.state, self.steps, **hyper)


def test_adamw_step_takes_the_flat_tensors():
    plain, flattened = Model(), Model()
    ours = train(flattened, Ours(flatten_(flattened, grads=True)))
    used = [p for p in plain.parameters() if p.requires_grad and p.numel()]
    same(ours, train(plain, Ours(used)))


@grads_or_not
def test_parameters_are_aligned_views_in_order_and_gaps_are_zero(grads):
    model, other = Model(), Model()
    objects, strides = list(model.parameters()), [each.stride() for each in model.parameters()]
    flats = flatten_(model, grads=grads)
    assert [flat.dtype for flat in flats] == [torch.float32, torch.float64]
    assert all(each is before for each, before in zip(model.parameters(), objects, strict=True))
    assert [each.stride() for each in model.parameters()] == strides
    assert model.head.weight is model.embedding.weight
    same(model.state_dict(), other.state_dict())
    for flat in flats:
        assert flat.dim() == 1
        assert flat.is_leaf
        assert not flat.requires_grad
        assert (flat.grad is not None) == grads
        mine = [each for each in objects if each.dtype is flat.dtype and each.requires_grad and each.numel()]
        places = [(each.data_ptr() - flat.data_ptr()) // each.element_size() for each in mine]
        assert all(each.data_ptr() % 64 == 0 for each in mine)
        assert places == sorted(places)
        stops = [place + each.numel() for place, each in zip(places, mine, strict=True)]
        assert all(0 <= start - stop < 16 for stop, start in zip([0, *stops], [*places, flat.numel()], strict=True))
        for each, place in zip(mine, places, strict=True):
            if grads:
                assert each.grad.data_ptr() - flat.grad.data_ptr() == place * each.element_size()
            each.data.fill_(0)
        assert not flat.any()
    assert model.frozen.data_ptr() not in range(flats[0].data_ptr(), flats[0].data_ptr() + flats[0].nbytes)
    assert model.frozen.tolist() == [1, 1, 1]


def test_gradients_that_are_there_are_kept():
    plain, flattened = Model(), Model()
    for model in (plain, flattened):
        train(model, torch.optim.SGD(model.parameters(), lr=0.0), steps=1)
    flattened.scale.grad = None
    flats = flatten_(flattened, grads=True)
    assert flattened.scale.grad == 0
    assert float(flats[0].grad.abs().sum()) > 0
    for (name, mine), other in zip(flattened.named_parameters(), plain.parameters(), strict=True):
        if other.grad is not None and name != "scale":
            assert torch.equal(mine.grad, other.grad), name


def test_parameters_over_the_same_memory_stay_tied():
    module = torch.nn.Module()
    module.one = torch.nn.Parameter(torch.ones(4))
    module.two = torch.nn.Parameter(module.one.data)
    module.one.grad, module.two.grad = torch.full((4,), 2.0), torch.full((4,), 3.0)
    (flat,) = flatten_(module, grads=True)
    assert flat.numel() == 4
    assert module.one.data_ptr() == module.two.data_ptr() == flat.data_ptr()
    assert flat.grad.tolist() == module.two.grad.tolist() == [5, 5, 5, 5]


def test_it_may_be_called_again():
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flatten_(model, grads=True)
    model.double()
    (flat,) = flatten_(model, grads=True)
    assert flat.dtype is torch.float64
    model.float()
    flatten_(model)
    flatten_(model)
    same({name: value.to(before[name].dtype) for name, value in model.state_dict().items()}, before)


def test_what_the_docstring_says_of_copies():
    model = Model()
    (flat, _) = flatten_(model, grads=True)
    other = copy.deepcopy(model)
    same(other.state_dict(), model.state_dict())
    storages = {each.untyped_storage().data_ptr() for each in other.parameters() if each.numel()}
    assert len(storages) == len([each for each in other.parameters() if each.numel()])
    assert other.head.weight is other.embedding.weight
    model.zero_grad(set_to_none=False)
    assert model.scale.grad.data_ptr() != 0
    assert flat.grad is not None
    model.zero_grad()
    assert model.scale.grad is None


def test_a_module_without_parameters_has_no_flat_tensor():
    assert flatten_(torch.nn.ReLU()) == []


class Shard(torch.nn.Parameter):
    pass


def module_of(**parameters):
    module = torch.nn.Module()
    module.first = torch.nn.Parameter(torch.ones(3))
    for name, parameter in parameters.items():
        module.register_parameter(name, parameter)
    return module


def overlapping():
    memory = torch.ones(10)
    return module_of(a=torch.nn.Parameter(memory[:6]), b=torch.nn.Parameter(memory[4:]))


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (lambda: [torch.ones(3)], TypeError, "`module` must be a torch.nn.Module, got list"),
        (
            lambda: module_of(a=torch.nn.parameter.UninitializedParameter()),
            ValueError,
            "`module.a` must have a shape, got a lazy parameter: call the module once before",
        ),
        (
            lambda: module_of(a=torch.nn.Parameter(torch.ones(3, device="meta"))),
            ValueError,
            "`module.a` must have memory, got a parameter on the meta device",
        ),
        (
            lambda: module_of(a=Shard(torch.ones(3))),
            TypeError,
            "`module.a` must be a plain torch.Tensor, got Shard: pass `x.as_subclass(torch.Tensor)`",
        ),
        (
            lambda: module_of(a=torch.nn.Parameter(torch.ones(3).to_sparse())),
            TypeError,
            "`module.a` must be a strided tensor, got torch.sparse_coo: pass `x.to_dense()`",
        ),
        (
            lambda: module_of(a=torch.nn.Parameter(torch.ones(6)[::2])),
            ValueError,
            "`module.a` must be dense, got shape (3,) with strides (2,)",
        ),
        (
            overlapping,
            ValueError,
            "`module.b` must not overlap `module.a`, unless it is the same tensor, got parameters that share memory",
        ),
    ],
)
def test_what_cannot_be_moved_is_refused_and_nothing_is_changed(module, error, message):
    module = module()
    parameters = list(module.parameters()) if isinstance(module, torch.nn.Module) else module
    places = [each.data_ptr() for each in parameters[:1]]
    with pytest.raises(error, match=exactly(message)):
        flatten_(module, grads=True)
    assert [each.data_ptr() for each in parameters[:1]] == places
    assert parameters[0].grad is None


def test_grads_is_a_flag():
    with pytest.raises(TypeError, match=exactly("`grads` must be True or False, got 1")):
        flatten_(torch.nn.Linear(2, 2), grads=1)
