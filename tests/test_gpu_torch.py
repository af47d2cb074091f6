"""Optimizers of `fastadam.torch` on a GPU: the bits of those on the CPU, and what goes around a step there."""

import copy
import io

import pytest
from gpu import torch_on_device

pytest.importorskip("cupy")
torch = pytest.importorskip("torch")

import fastadam.torch  # noqa: E402

pytestmark = pytest.mark.gpu

SHAPES = [(300, 70), (70,), (), (0, 3), (3, 11, 7)]
STEPS = 5
CLASSES = ["Adam", "AdamW", "NAdam", "Adamax", "RAdam", "Lion", "AdEMAMix"]
OPTIONS = {
    "plain": {},
    "clipped": {"max_grad_norm": 1.0},
    "each clipped": {"max_grad_norm_per_param": 0.5},
    "skipping": {"nonfinite": "skip"},
    "averaged, zeroed": {"ema_decay": 0.9, "zero_grad": True},
    "bfloat16 moments": {"moment_dtype": "bfloat16"},
    "8-bit moments": {"moment_dtype": "float8"},
    "masters": {"master_weights": True},
    "copies": {"copy_dtype": "bfloat16"},
}


@pytest.fixture(autouse=True)
def device():
    torch_on_device()
    return "cuda"


def parameters(device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype)) for shape in SHAPES]


def gradients(params, number, scale=1.0):
    generator = torch.Generator().manual_seed(100 + number)
    return [(scale * torch.randn(p.shape, generator=generator)).to(p.device, p.dtype) for p in params]


def give(params, number, scale=1.0):
    for p, gradient in zip(params, gradients(params, number, scale), strict=True):
        p.grad = gradient


def trained(opt, params, steps=STEPS):
    for number in range(steps):
        give(params, number)
        opt.step()
    return held(opt, params)


def held(opt, params):
    """All that trains, on the CPU."""
    found = []
    for p, entry in zip(params, opt.state_dict()["state"].values(), strict=True):
        found += [p.detach().cpu(), *(value.cpu() for value in entry.values())]
    return found


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one.float(), other.float(), rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_trains_to_the_bits_of_the_cpu(name, dtype, device):
    runs = []
    for place in (device, "cpu"):
        params = parameters(place, getattr(torch, dtype))
        runs.append(trained(getattr(fastadam.torch, name)(params, lr=0.01, weight_decay=0.1), params))
    if (name, dtype) in {("NAdam", "float64"), ("AdEMAMix", "float64")}:
        for one, other in zip(*runs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    else:
        assert_equal(*runs)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for dtype, others in (("float32", "masters"), ("bfloat16", "copies"))
        for name in OPTIONS
        if name != others
    ],
)
def test_options_train_to_the_bits_of_the_cpu(name, dtype, device):
    options, runs = OPTIONS[name], []
    for place in (device, "cpu"):
        params = parameters(place, getattr(torch, dtype))
        opt = fastadam.torch.AdamW(params, lr=0.01, **options)
        runs.append(trained(opt, params))
    assert_equal(*runs)


def test_beside_the_fused_optimizer_of_torch(device):
    runs = []
    for make in (torch.optim.AdamW, fastadam.torch.AdamW):
        params = parameters(device)
        runs.append(trained(make(params, lr=0.01, amsgrad=True, fused=True), params, 50))
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-6)


def test_states_go_from_one_device_to_the_other_and_to_torch_and_back(device):
    params, here = parameters(device), parameters("cpu")
    opt, other = fastadam.torch.AdamW(params, lr=0.01), fastadam.torch.AdamW(here, lr=0.01)
    trained(opt, params)
    trained(other, here)
    saved = io.BytesIO()
    torch.save(opt.state_dict(), saved)
    saved.seek(0)
    for each in (fastadam.torch.AdamW, torch.optim.AdamW):
        loaded = each(parameters(device), lr=0.01)
        saved.seek(0)
        loaded.load_state_dict(torch.load(saved, map_location="cpu", weights_only=True))
        opt.load_state_dict(loaded.state_dict())
    saved.seek(0)
    other.load_state_dict(torch.load(saved, map_location="cpu", weights_only=True))
    for pair in ((opt, params), (other, here)):
        trained(*pair)
    assert_equal(held(opt, params), held(other, here))


def test_the_state_of_a_model_that_is_moved_follows(device):
    runs = []
    for moves in (True, False):
        torch.manual_seed(0)
        net = torch.nn.Linear(5, 3)
        opt = fastadam.torch.AdamW(net.parameters(), lr=0.01)
        for number in range(4):
            if moves and number == 2:
                net.to(device)
            for p in net.parameters():
                p.grad = torch.full((p.shape), number + 1.0, device=p.device)
            opt.step()
        assert not moves or {entry["exp_avg"].device.type for entry in opt.state.values()} == {"cuda"}
        runs.append(held(opt, list(net.parameters())))
    assert_equal(*runs)


def test_other_strides_rows_and_missing_gradients(device):
    runs = []
    for place in (device, "cpu"):
        params = parameters(place)
        params.append(torch.nn.Parameter(torch.arange(12.0).reshape(3, 4).t().to(place)))
        table = torch.nn.Parameter(torch.ones(50, 8).to(place))
        opt = fastadam.torch.Adam([*params, table], lr=0.01)
        for number in range(4):
            give(params, number)
            params[number].grad = None
            params[-1].grad = params[-1].grad.contiguous()
            rows = torch.tensor([[3, 7, 3]])
            values = torch.ones(3, 8) * (number + 1)
            table.grad = torch.sparse_coo_tensor(rows, values, (50, 8), check_invariants=True).to(place)
            opt.step()
        runs.append([p.detach().cpu() for p in (*params, table)])
    assert_equal(*runs)


def test_the_scaler_of_torch_by_both_of_its_protocols_and_ours(device):
    runs = []
    for kind, options in (
        (torch.amp.GradScaler, {}),
        (torch.amp.GradScaler, {"fused": True}),
        (fastadam.torch.GradScaler, {"nonfinite": "skip"}),
    ):
        params = parameters(device)
        opt, scaler = fastadam.torch.AdamW(params, lr=0.01, **options), kind(device, init_scale=64.0, growth_interval=2)
        scales = []
        for number in range(6):
            scaler.scale(torch.zeros(1, device=device))
            give(params, number, scaler.get_scale())
            if number in (0, 3):
                params[0].grad[5, 5] = torch.inf
            scaler.step(opt)
            scaler.update()
            scales.append(scaler.get_scale())
        runs.append((scales, held(opt, params)))
    first, *others = runs
    assert first[0] == [32.0, 32.0, 64.0, 32.0, 32.0, 64.0]
    for scales, state in others:
        assert scales == first[0]
        assert_equal(state, first[1])


def test_no_step_waits_for_the_device(device):
    params = parameters(device)
    opt = fastadam.torch.AdamW(params, nonfinite="skip", max_grad_norm=1.0, lr=0.01)
    scaler = fastadam.torch.GradScaler(device, init_scale=64.0)
    for number in range(3):
        scaler.scale(torch.zeros(1, device=device))
        give(params, number)
        scaler.step(opt)
        scaler.update()
    torch.cuda.synchronize()
    event = torch.cuda.Event()
    torch.cuda._sleep(1_000_000_000)
    event.record()
    for _ in range(10):
        scaler.step(opt)
        scaler.update()
    assert not event.query()


def test_what_is_sent_is_what_was_written_before_the_step(device):
    """The host runs ahead, and each step has another learning rate, other gradients, and those elsewhere."""
    runs = []
    for place in (device, "cpu"):
        params = parameters(place)
        given = [gradients(params, number) for number in range(12)]
        opt = fastadam.torch.AdamW(params, lr=0.01)
        if place == device:
            torch.cuda._sleep(200_000_000)
        for number, each in enumerate(given):
            opt.param_groups[0]["lr"] = 0.01 * (number % 3 + 1)
            for p, gradient in zip(params, each, strict=True):
                p.grad = gradient
            opt.step()
        runs.append(held(opt, params))
    assert_equal(*runs)


def test_a_side_stream(device):
    runs = []
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        params = parameters(device)
        opt = fastadam.torch.AdamW(params, lr=0.01, max_grad_norm=1.0)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            runs.append(trained(opt, params))
        torch.cuda.synchronize()
    assert_equal(*runs)


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0, "nonfinite": "skip"}], ids=["plain", "guarded"])
def test_replays_take_the_settings_and_the_scale_written_between_them(options, device):
    captured, plain = parameters(device), parameters(device)
    opt, other = (
        fastadam.torch.AdamW(each, lr=0.01, capturable=True, weight_decay=0.1, **options) for each in (captured, plain)
    )
    for each, of in ((opt, captured), (other, plain)):
        give(of, 0)
        each.grad_scale = torch.full((), 8.0, device=device)
        each.step()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        opt.step()
    torch.cuda.synchronize()
    for number in range(4):
        for each in (opt, other):
            each.param_groups[0]["lr"] = 0.01 * (number + 1)
            each.grad_scale.fill_(2.0**number)
        opt.send_settings()
        graph.replay()
        other.step()
    assert_equal(held(opt, captured), held(other, plain))


def test_a_whole_training_step_can_be_captured(device):
    nets = []
    for captures in (True, False):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 4)).to(device)
        opt = fastadam.torch.AdamW(net.parameters(), lr=0.01, capturable=True)
        inputs = torch.randn(8, 16, device=device)

        def iteration(net=net, opt=opt, inputs=inputs):
            opt.zero_grad(set_to_none=False)
            net(inputs).square().mean().backward()
            opt.step()

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                iteration()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        if captures:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                iteration()
            for _ in range(5):
                graph.replay()
        else:
            for _ in range(5):
                iteration()
        torch.cuda.synchronize()
        nets.append([p.detach().cpu() for p in net.parameters()])
    assert_equal(*nets)


def test_copies_pickles_and_schedulers(device):
    params = parameters(device)
    opt = fastadam.torch.AdamW(params, lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=20)
    for number in range(3):
        give(params, number)
        opt.step()
        scheduler.step()
    twin_params, twin = copy.deepcopy((params, opt))
    for each, of in ((opt, params), (twin, twin_params)):
        trained(each, of)
    assert_equal(held(opt, params), held(twin, twin_params))


def test_parameters_on_two_devices(device):
    runs = []
    for places in ((device, "cpu"), ("cpu", "cpu")):
        params = [parameters(place)[0] for place in places]
        runs.append(trained(fastadam.torch.AdamW(params, lr=0.01), params))
    assert_equal(*runs)


def test_a_gradient_of_the_cpu_is_refused(device):
    p = torch.ones(3, device=device)
    opt = fastadam.torch.AdamW([p])
    with pytest.raises(RuntimeError, match="device"):
        p.grad = torch.ones(3)
    p.grad = torch.ones(3, device=device)
    opt.step()
    assert not torch.equal(p.cpu(), torch.ones(3))


def test_update_for_offloaded_states_refuses_tensors_on_the_device(device):
    tensors = [[torch.ones(3, device=device)] for _ in range(4)]
    with pytest.raises((TypeError, ValueError), match="CPU"):
        fastadam.torch.adamw_step(
            *tensors, [torch.zeros(())], lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.0, eps=1e-8
        )


@pytest.fixture
def nccl(tmp_path):
    if not torch.distributed.is_nccl_available():
        pytest.skip("torch is built without NCCL")
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrapper", ["fully_shard", "DDP", "none"])
def test_wrapped_modules(wrapper, nccl, device):
    def net():
        torch.manual_seed(0)
        made = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 4)).to(device)
        if wrapper == "fully_shard":
            torch.distributed.fsdp.fully_shard(made)
        if wrapper == "DDP":
            made = torch.nn.parallel.DistributedDataParallel(made, device_ids=[0], gradient_as_bucket_view=True)
        return made

    runs = []
    for make in (torch.optim.AdamW, fastadam.torch.AdamW):
        each = net()
        opt = make(each.parameters(), lr=0.01)
        for _ in range(5):
            opt.zero_grad()
            each(torch.ones(8, 16, device=device)).square().mean().backward()
            opt.step()
        whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in each.parameters()]
        runs.append([p.detach().cpu() for p in whole])
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
