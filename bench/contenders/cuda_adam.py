"""On a GPU: fastadam, CuPy's own array arithmetic, Apex, bitsandbytes, and the limit of the memory there."""

from functools import partial

from fastadam.bench.contender import Built, Contender, limit_name
from fastadam.bench.contenders.fastadam_adam import packed
from fastadam.bench.contenders.torch_adam import values, waiting, with_gradients
from fastadam.bench.layouts import moves


def of_fastadam(params, grads, kind):
    import cupy

    held = {name: cupy.asarray(p) for name, p in params.items()}
    optimizer = packed(held)

    def feed(others):
        for name, grad in others.items():
            optimizer.grads[name] = cupy.asarray(grad)

    feed(grads)
    return Built(_waiting(optimizer.step), lambda: {name: p.get() for name, p in held.items()}, feed)


def of_cupy(params, grads, kind):
    import cupy

    from fastadam.demo.textbook import TextbookAdam

    held, gradients = ({name: cupy.asarray(a) for name, a in arrays.items()} for arrays in (params, grads))
    optimizer = TextbookAdam()

    def step():
        held.update(optimizer.step(held, gradients))

    def feed(others):
        gradients.update({name: cupy.asarray(grad) for name, grad in others.items()})

    return Built(_waiting(step), lambda: {name: p.get() for name, p in held.items()}, feed)


def _waiting(step):
    import cupy

    def step_and_wait():
        step()
        cupy.cuda.get_current_stream().synchronize()

    return step_and_wait


def _of_torch_class(find):
    def build(params, grads, kind):
        tensors, feed = with_gradients(params, grads, "cuda")
        optimizer = find()(list(tensors.values()))
        return Built(waiting(optimizer.step), lambda: values(tensors), feed)

    return build


def _apex():
    from apex.optimizers import FusedAdam

    return lambda tensors: FusedAdam(tensors, adam_w_mode=False)


def _bitsandbytes():
    from bitsandbytes.optim import Adam8bit

    return Adam8bit


def of_limit(params, grads, kind, layout):
    """No Adam: the loads and stores of a layout, with additions of integers for arithmetic."""
    import cupy

    moved, size = moves(layout, kind), sum(p.size for p in params.values())
    buffers = (
        {f"r{i}": bits for i, bits in enumerate(moved.read)},
        {f"u{i}": bits for i, bits in enumerate(moved.updated)},
    )
    read, updated = ({name: cupy.ones(size, f"u{count}") for name, count in sizes.items()} for sizes in buffers)
    statements = [f"u0 = v0 + {' + '.join([*read, '1'])}", *(f"{name} = v{name[1:]} + 1" for name in list(updated)[1:])]
    inputs = [f"uint{8 * array.itemsize} {name}" for name, array in read.items()]
    inputs += [f"uint{8 * array.itemsize} v{name[1:]}" for name, array in updated.items()]
    outputs = [f"uint{8 * array.itemsize} {name}" for name, array in updated.items()]
    touch = cupy.ElementwiseKernel(", ".join(inputs), ", ".join(outputs), "; ".join(statements), "touch")
    arrays = [*read.values(), *updated.values(), *updated.values()]
    return Built(_waiting(partial(touch, *arrays)), dict, dict)


CONTENDERS = (
    Contender("fastadam, CUDA", of_fastadam, ("cupy",), device="cuda"),
    Contender("CuPy arrays", of_cupy, ("cupy",), device="cuda"),
    Contender("Apex FusedAdam", _of_torch_class(_apex), ("cupy", "torch", "apex"), device="cuda"),
    Contender(
        "bitsandbytes Adam8bit",
        _of_torch_class(_bitsandbytes),
        ("cupy", "torch", "bitsandbytes"),
        layout="8-bit m, v",
        tolerance=(1e-5, 5e-3),
        strays=1e-3,
        device="cuda",
    ),
    *(
        Contender(limit_name(layout, "cuda"), partial(of_limit, layout=layout), ("cupy",), layout=layout, device="cuda")
        for layout in ("float32", "8-bit m, v")
    ),
)
