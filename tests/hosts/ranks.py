"""Functions run by the processes of one gloo group."""

import os
import tempfile

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from training import small_model


def run(function, *arguments, ranks=2):
    """Call function(*arguments) in each of `ranks` processes; an error in one of them is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_in_group, (function, arguments, ranks, f"file://{folder}/group"), nprocs=ranks)


def _in_group(rank, function, arguments, ranks, meeting):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), GLOO_SOCKET_IFNAME="lo")
    os.environ.update(
        MASTER_ADDR="localhost", MASTER_PORT="29500"
    )  # asked for by hosts, used by none: the group is there
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    try:
        function(*arguments)
    finally:
        dist.destroy_process_group()


def own_batches(steps):
    """The numbers of this rank's batches: no two ranks have the same."""
    return range(dist.get_rank() * steps, (dist.get_rank() + 1) * steps)


def assert_same_on_all_ranks(tensors):
    for tensor in tensors:
        gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, tensor.detach())
        assert all(torch.equal(tensor, other) for other in gathered)


def sharded_model(seed=0):
    """Parameters are DTensors; each layer is a unit of its own."""
    model = small_model(seed)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(model):
    """The parameters of a sharded model."""
    return [parameter.full_tensor() for parameter in model.parameters()]
