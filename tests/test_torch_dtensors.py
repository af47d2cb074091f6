"""Parameters that are DTensors, in a group of one process; tests/hosts has more processes."""

import pytest
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch_training import fused, torch

dist = torch.distributed


@pytest.fixture
def mesh(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def split(values, mesh, placement=None):
    return torch.nn.Parameter(distribute_tensor(values.clone(), mesh, [placement or Shard(0)]))


def test_steps_are_those_of_whole_tensors(mesh):
    values = [normal(8, 3), normal(5), normal(0, 2)]
    params, others = [split(each, mesh) for each in values], [torch.nn.Parameter(each.clone()) for each in values]
    plain, other = torch.nn.Parameter(normal(4)), torch.nn.Parameter(normal(4))
    opt, twin = fused.AdamW([*params, plain], lr=0.1), fused.AdamW([*others, other], lr=0.1)
    for step in range(3):
        for p, q in zip([*params, plain], [*others, other], strict=True):
            q.grad = normal(*q.shape, seed=step)
            p.grad = q.grad.clone() if p is plain else distribute_tensor(q.grad, mesh, [Shard(0)])
        if step == 1:
            params[1].grad = others[1].grad = None
        versions = [p._version for p in params]
        opt.step()
        twin.step()
        assert [p._version > before for p, before in zip(params, versions, strict=True)] == [True, step != 1, True]
    for p, q in zip([*params, plain], [*others, other], strict=True):
        assert torch.equal(p.detach() if p is plain else p.to_local(), q)
    moment = opt.state[params[0]]["exp_avg"]
    assert type(moment) is type(params[0])
    assert moment.placements == params[0].placements


def test_a_part_that_is_replaced_is_found(mesh):
    p, q = split(normal(8, 3), mesh), torch.nn.Parameter(normal(8, 3))
    opt, twin = fused.Adam([p], lr=0.1), fused.Adam([q], lr=0.1)
    for step in range(3):
        q.grad = normal(8, 3, seed=step)
        p.grad = distribute_tensor(q.grad, mesh, [Shard(0)])
        p._local_tensor = p._local_tensor.clone()  # FSDP2 does so
        opt.param_groups[0]["maximize"] = twin.param_groups[0]["maximize"] = step == 2
        opt.step()
        twin.step()
    assert torch.equal(p.to_local(), q)


def test_gradients_are_brought_to_the_parts_of_their_parameters(mesh):
    p, q = split(normal(4, 4), mesh, Replicate()), torch.nn.Parameter(normal(4, 4))
    opt, twin = fused.Adam([p], lr=0.1), fused.Adam([q], lr=0.1)
    q.grad = normal(4, 4, seed=1)
    p.grad = DTensor.from_local(q.grad.clone(), mesh, [Partial()])
    opt.step()
    twin.step()
    assert torch.equal(p.to_local(), q)


@pytest.mark.parametrize(
    ("option", "value"), [("max_grad_norm", 1.0), ("nonfinite", "skip"), ("moment_dtype", "float8")]
)
def test_options_that_need_the_whole_are_refused(mesh, option, value):
    p = split(normal(64, 128), mesh)
    p.grad = distribute_tensor(normal(64, 128), mesh, [Shard(0)])
    opt = fused.AdamW([p], **{option: value})
    with pytest.raises(ValueError, match=f"`{option}`.*DTensors"):
        opt.step()
    assert torch.equal(p.to_local(), normal(64, 128))


def test_states_and_gradients_of_another_kind_are_refused(mesh):
    p = split(normal(8, 3), mesh)
    p.grad = distribute_tensor(normal(8, 3), mesh, [Shard(0)])
    opt = fused.Adam([p])
    opt.step()
    before = p.to_local().clone()
    opt.state[p]["exp_avg"] = torch.zeros(8, 3)
    with pytest.raises(ValueError, match=r"exp_avg.*must be split like its parameter"):
        opt.step()
    assert torch.equal(p.to_local(), before)


CHANGES = {
    "dtype": (torch.Tensor.bfloat16, r"_local_tensor` must be torch.float32 like its DTensor, got torch.bfloat16"),
    "size": (lambda part: part[:2].clone(), r"_local_tensor` must have shape \(.*\) like that of its parameter, got"),
    "device": (lambda part: part.to("meta"), "must be (on cpu like its DTensor|in CPU or CUDA memory), got .*meta"),
}


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("fact", CHANGES)
@pytest.mark.parametrize("whose", ["parameter", "gradient", "partial gradient", "state"])
def test_a_part_that_is_not_what_its_dtensor_says_is_refused(mesh, whose, fact, step):
    change, message = CHANGES[fact]
    first = split(normal(5), mesh)
    p = split(normal(8, 3), mesh, Replicate() if whose == "partial gradient" else Shard(0))
    opt = fused.Adam([first, p], lr=0.1)
    opt.state[p]["exp_avg"] = torch.zeros_like(p)
    for number in range(step + 1):
        first.grad, p.grad = torch.ones_like(first), torch.ones_like(p)
        if whose == "partial gradient":
            p.grad = DTensor.from_local(torch.ones(8, 3), mesh, [Partial()])
        if number < step:
            opt.step()
    before = first.to_local().clone()
    whole = {"parameter": p, "state": opt.state[p]["exp_avg"]}.get(whose, p.grad)
    whole._local_tensor = change(whole._local_tensor)
    with pytest.raises((TypeError, ValueError), match=message):
        opt.step()
    assert torch.equal(first.to_local(), before)


class Wrapper(torch.Tensor):
    """Has no memory, as quantised tensors have none."""

    @staticmethod
    def __new__(cls, shape):
        return torch.Tensor._make_wrapper_subclass(cls, shape)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return cls(args[0].shape) if function is torch.ops.aten.detach.default else NotImplemented


@pytest.mark.parametrize("which", ["parameter", "gradient", "one gradient of two"])
def test_tensors_without_memory_of_their_own_are_refused(which):
    p = torch.nn.Parameter(Wrapper((3,)) if which == "parameter" else torch.ones(3))
    p.grad = Wrapper((3,)) if which != "parameter" else torch.ones(3)
    others = [torch.nn.Parameter(torch.ones(2))] if which == "one gradient of two" else []
    opt = fused.Adam([p, *others])
    with pytest.raises(TypeError, match="must be a tensor with memory of its own, got Wrapper"):
        opt.step()
