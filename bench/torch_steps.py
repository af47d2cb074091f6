"""What `fastadam.torch` takes in the place of torch's own optimizers.

    python -m fastadam.bench.torch_steps docs/torch-intel.json

saves it for docs/publish.py. What is timed has first been held against torch's own optimizer.
"""

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from fastadam.bench.interleave import Turn, interleave, timed
from fastadam.bench.machine import facts
from fastadam.bench.tables import duration
from fastadam.bench.torch_training import (
    FUSED,
    OURS,
    SETTINGS,
    assert_alike,
    hold_alike,
    ours,
    parameters,
    sequences,
    torch_fused,
)
from fastadam.bench.workloads import GPT2, MLP, RESNET50
from fastadam.torch.tensors import local

TINY = [(8,)] * 150
MAKERS: dict[str, Callable[[Any], Any]] = {FUSED: torch_fused, OURS: ours}


# --- the step alone


def alone(shapes: Sequence[tuple[int, ...]]) -> dict[str, Turn]:
    """`step()` as it is called in a loop that does nothing else."""
    return _steps({name: parameters(shapes) for name in MAKERS})


def _steps(params):
    optimizers = {name: make(params[name]) for name, make in MAKERS.items()}
    steps = {name: (list(map(local, params[name])), optimizer.step) for name, optimizer in optimizers.items()}
    hold_alike(steps)
    hold_alike(steps)
    return {name: timed(optimizer.step) for name, optimizer in optimizers.items()}


def of_parts(shapes: Sequence[tuple[int, ...]]) -> dict[str, Turn]:
    """The same, where all parameters are DTensors, as those of FSDP2 are."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    params: dict[str, list[Any]] = {name: [] for name in MAKERS}
    for of_one in params.values():
        for p in parameters(shapes):
            of_one.append(torch.nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])))
            of_one[-1].grad = distribute_tensor(p.grad, mesh, [Shard(0)])
    return _steps(params)


# --- a training loop


class Gpt(torch.nn.Module):
    """A small GPT: 30 tensors, 0.28 million parameters."""

    def __init__(self, vocabulary: int = 1_024, width: int = 64, layers: int = 2, context: int = 64):
        super().__init__()
        self.tokens = torch.nn.Embedding(vocabulary, width)
        self.positions = torch.nn.Embedding(context, width)
        self.blocks = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(
                width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = torch.nn.LayerNorm(width)
        self.head = torch.nn.Linear(width, vocabulary, bias=True)

    def forward(self, tokens: Any) -> Any:
        hidden = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        mask = torch.nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        for block in self.blocks:
            hidden = block(hidden, src_mask=mask, is_causal=True)
        return self.head(self.norm(hidden))


class Training:
    """A small GPT that is trained on random tokens."""

    def __init__(self, make: Callable[[Any], Any]):
        torch.manual_seed(0)
        self.model = Gpt()
        self.optimizer = make(self.model.parameters())
        self._tokens = torch.randint(1_024, (16, 65), generator=torch.Generator().manual_seed(0))

    def gradients(self) -> None:
        """Forward and backward."""
        self.optimizer.zero_grad()
        logits = self.model(self._tokens[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), self._tokens[:, 1:].flatten()).backward()

    def iteration(self) -> None:
        """One iteration of training."""
        self.gradients()
        self.optimizer.step()

    def step_inside(self, count: int) -> float:
        """A turn: the seconds that a step takes in `count` iterations, after which all caches are cold."""
        seconds = 0.0
        for _ in range(count):
            self.gradients()
            start = perf_counter()
            self.optimizer.step()
            seconds += perf_counter() - start
        return seconds / count


def trainings() -> dict[str, Training]:
    """Both, held against each other."""
    made = {name: Training(make) for name, make in MAKERS.items()}
    for training in made.values():
        for _ in range(3):
            training.iteration()
    assert_alike({name: list(training.model.parameters()) for name, training in made.items()}, 1e-3)
    return made


def small_gpt() -> dict[str, Turn]:
    """The step alone, for the shapes of the small GPT."""
    return alone([tuple(p.shape) for p in Gpt().parameters()])


def inside_a_loop() -> dict[str, Turn]:
    """The step inside of a training loop."""
    return {name: training.step_inside for name, training in trainings().items()}


def iteration() -> dict[str, Turn]:
    """Forward, backward and step."""
    return {name: timed(training.iteration) for name, training in trainings().items()}


# --- all that a training loop does around a step


def full_sequence() -> dict[str, Turn]:
    """All that a training loop does around a step."""
    made = sequences(partial(parameters, list(GPT2.shapes.values())))
    turns = {
        name: timed(iteration, partial(_restore, params, [p.grad.clone() for p in params]))
        for name, (params, iteration) in made.items()
    }
    hold_alike(made)
    return {name: partial(_at_most_one, turn) for name, turn in turns.items()}


def _at_most_one(turn, count):
    """Zeroed gradients would be timed otherwise."""
    return turn(1)


@torch.no_grad()
def _restore(params, gradients):
    for p, gradient in zip(params, gradients, strict=True):
        p.grad.copy_(gradient)


# --- fewer bytes


def in_fewer_bits() -> dict[str, Turn]:
    """GPT-2 with bfloat16 parameters and 8-bit moments, beside others that have 8-bit moments, and float32."""
    shapes = list(GPT2.shapes.values())
    narrow = partial(parameters, shapes, torch.bfloat16)
    makers: dict[str, Callable[[], Any]] = {
        FUSED: lambda: torch_fused(parameters(shapes)),
        "torchao, AdamW8bit": lambda: _torchao(narrow()),
        "bitsandbytes, AdamW8bit": lambda: _bitsandbytes(narrow()),
        "fastadam.torch, bfloat16, 8-bit moments": lambda: ours(narrow(), moment_dtype="float8"),
    }
    return {name: timed(optimizer.step) for name, optimizer in _that_step(makers)}


def _torchao(params):
    from torchao.optim import AdamW8bit

    return AdamW8bit(params, **SETTINGS, bf16_stochastic_round=True)


def _bitsandbytes(params):
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(params, **SETTINGS)


def _that_step(makers) -> Iterator[tuple[str, Any]]:
    """The optimizers that are here, and step as far as is expected of 8 bits; the others are said to be missing."""
    reference = None
    for name, make in makers.items():
        try:
            optimizer = make()
            params = optimizer.param_groups[0]["params"]
            before = [p.detach().float().clone() for p in params]
            optimizer.step()
        except (ImportError, RuntimeError, NotImplementedError, AssertionError) as error:
            print(f"{name} does not run here: {error}", file=sys.stderr)
            continue
        moved = torch.cat([(p.detach().float() - b).flatten() for p, b in zip(params, before, strict=True)])
        reference = moved if reference is None else reference
        # In bfloat16 many parameters cannot move by as little as the step is, but on average they do.
        assert abs(float(moved.abs().mean() / reference.abs().mean()) - 1) < 0.5, name
        yield name, optimizer


# --- construction


def one_of_a_thousand() -> dict[str, Turn]:
    """An optimizer for 1,000 parameters."""
    params = parameters([(8,)] * 1_000)
    return {name: timed(partial(make, params)) for name, make in MAKERS.items()}


def a_thousand_of_one() -> dict[str, Turn]:
    """An optimizer for each of 1,000 parameters."""
    params = parameters([(8,)] * 1_000)
    return {name: timed(partial(_one_of_each, make, params)) for name, make in MAKERS.items()}


def _one_of_each(make, params):
    return [make([p]) for p in params]


CASES: dict[str, Callable[[], dict[str, Turn]]] = {
    "MLP, 6 tensors: the step": partial(alone, list(MLP.shapes.values())),
    "small GPT, 30 tensors: the step": small_gpt,
    "small GPT: the step inside a training loop": inside_a_loop,
    "small GPT: forward, backward and step": iteration,
    "150 tensors of 8: the step": partial(alone, TINY),
    "150 DTensors of 8: the step": partial(of_parts, TINY),
    "ResNet-50, 161 tensors: the step": partial(alone, list(RESNET50.shapes.values())),
    "GPT-2 124M, 148 tensors: the step": partial(alone, list(GPT2.shapes.values())),
    "GPT-2 124M: unscale, check, clip, step, average, zero": full_sequence,
    "GPT-2 124M: bfloat16 and 8-bit moments": in_fewer_bits,
    "an optimizer for 1,000 parameters": one_of_a_thousand,
    "an optimizer for each of 1,000 parameters": a_thousand_of_one,
}


def measured(names: Sequence[str] = (), rounds: int = 31) -> dict[str, dict[str, float]]:
    """Case -> contender -> median seconds; `names` are parts of the titles of the cases, all without."""
    results = {}
    for title, make in CASES.items():
        if not names or any(name in title for name in names):
            large = "124M" in title or "ResNet" in title
            times = interleave(make(), rounds=min(rounds, 11) if large else rounds, turn_seconds=5e-3)
            results[title] = {name: median(each) for name, each in times.items()}
            print(title, {name: f"{1e6 * seconds:.1f} us" for name, seconds in results[title].items()}, flush=True)
    return results


# What README shows, and the contender that stands beside torch's fused step.
FIRST = {
    "MLP, 6 tensors: the step": OURS,
    "small GPT, 30 tensors: the step": OURS,
    "small GPT: the step inside a training loop": OURS,
    "GPT-2 124M: unscale, check, clip, step, average, zero": f"{OURS}, {OURS}.GradScaler",
}
COLUMNS = ("what takes the time", "torch, fused", "beside it", "takes", "times as fast")


def rows(seconds: Mapping[str, Mapping[str, float]]) -> Iterator[list[str]]:
    """The rows of a table of what was measured: each contender beside torch's fused step."""
    for title, found in seconds.items():
        for name, each in found.items():
            if name != FUSED:
                yield [title, duration(found[FUSED]), name, duration(each), f"{found[FUSED] / each:.2f}"]


def brief(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a short table, of what was measured on two machines; the times are those of the first."""
    found, lines = [machine["seconds"] for machine in (first, second)], []
    for title, name in FIRST.items():
        faster = [f"{seconds[title][FUSED] / seconds[title][name]:.2f}" for seconds in found]
        lines.append([title, duration(found[0][title][FUSED]), duration(found[0][title][name]), *faster])
    return [*COLUMNS[:2], OURS, COLUMNS[-1], f"on {second['machine']['processor']}"], lines


def main(path: str, *names: str) -> None:
    """Save what is measured."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
        results = {"machine": facts(), "seconds": measured(names)}
        torch.distributed.destroy_process_group()
    Path(path).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
