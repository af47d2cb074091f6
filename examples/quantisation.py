"""What 8-bit moments keep of m and v: fastadam beside bitsandbytes and torchao, on the same gradients.

    python examples/quantisation.py           print the tables
    python examples/quantisation.py --docs    and save them in docs/, for docs/publish.py to write into docs/storage.md

`pip install bitsandbytes torchao` gets the other two, which are listed as missing otherwise. Every contender steps its
own optimizer; the truth is float64. Every eighth of the 16,384 elements has no gradient at all.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

import fastadam

SAVED = Path(__file__).parent.parent / "docs" / "quantisation.json"
SIZE, STEPS, BETAS = 16_384, 2_000, (0.9, 0.999)


class State(NamedTuple):
    """p, m and v of an optimizer, as float64."""

    p: np.ndarray
    m: np.ndarray
    v: np.ndarray


Contender = tuple[Callable[[np.ndarray], None], Callable[[], State]]


def of_fastadam(**options) -> Contender:
    p = np.zeros(SIZE, np.float32)
    optimizer = fastadam.Adam(p, betas=BETAS, **options)

    def state():
        plain = fastadam.Adam(np.zeros_like(p), betas=BETAS)
        plain.load_state_dict(optimizer.state_dict(), convert=True)
        return State(*(array.astype(float) for array in (p, plain.buffers.m, plain.buffers.v)))

    return optimizer.step, state


def of_bitsandbytes() -> Contender:
    import bitsandbytes
    import torch

    p = torch.nn.Parameter(torch.zeros(SIZE))
    optimizer = bitsandbytes.optim.Adam8bit([p], lr=1e-3, betas=BETAS)

    def step(gradient):
        p.grad = torch.from_numpy(gradient.copy())
        optimizer.step()

    def state():
        kept = optimizer.state[p]
        moments = [
            bitsandbytes.functional.dequantize_blockwise(
                kept[f"state{n}"], absmax=kept[f"absmax{n}"], code=kept[f"qmap{n}"], blocksize=256
            )
            for n in (1, 2)
        ]
        return State(*(tensor.detach().double().numpy() for tensor in (p, *moments)))

    return step, state


def of_torchao() -> Contender:
    # Its step is compiled by inductor otherwise, which takes half a minute; the states are the same.
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    import torch
    from torchao.optim import Adam8bit

    p = torch.nn.Parameter(torch.zeros(SIZE))
    optimizer = Adam8bit([p], lr=1e-3, betas=BETAS)

    def step(gradient):
        p.grad = torch.from_numpy(gradient.copy())
        optimizer.step()

    def state():
        kept = [optimizer.state[p][name].dequantize() for name in ("exp_avg", "exp_avg_sq")]
        return State(*(tensor.detach().double().numpy() for tensor in (p, *kept)))

    return step, state


CONTENDERS: dict[str, Callable[[], Contender]] = {
    "fastadam, float8": lambda: of_fastadam(moment_dtype="float8"),
    "fastadam, bfloat16": lambda: of_fastadam(moment_dtype="bfloat16"),
    "fastadam, bfloat16 to nearest": lambda: of_fastadam(moment_dtype="bfloat16", rounding="nearest"),
    "torchao Adam8bit": of_torchao,
    "bitsandbytes Adam8bit (its CPU backend)": of_bitsandbytes,
}
PACKAGES = {"torchao Adam8bit": "torchao", "bitsandbytes Adam8bit (its CPU backend)": "bitsandbytes"}
STREAMS = {
    "steady gradients": lambda step, fades: 1.0,
    "gradients of every second element fade to 1% after 500 steps": lambda step, fades: np.where(
        fades & (step > 500), 0.01, 1.0
    ),
}
COLUMNS = [
    "m: rms error, of sqrt(v)",
    "sqrt(v): rms error of its logarithm",
    "mean error",
    "v > 0 that became 0",
    "moved without a gradient",
]


def measure(scale: Callable, names: list[str]) -> list[list[str]]:
    """A row for each contender, after `STEPS` steps with gradients of very different sizes in every exponent group."""
    rng = np.random.default_rng(0)
    sizes, fades = np.exp(2 * rng.standard_normal(SIZE)), np.arange(SIZE) % 2 == 0
    silent = np.arange(SIZE) % 8 == 0
    sizes[silent] = 0.0
    contenders = {name: CONTENDERS[name]() for name in names}
    m, v = np.zeros(SIZE), np.zeros(SIZE)
    for step in range(1, STEPS + 1):
        gradient = (sizes * scale(step, fades) * (0.1 + rng.standard_normal(SIZE))).astype(np.float32)
        m += (1 - BETAS[0]) * (gradient - m)
        v += (1 - BETAS[1]) * (gradient.astype(float) ** 2 - v)
        for take_step, _ in contenders.values():
            take_step(gradient)
    return [[name, *_figures(state(), m, v, silent)] for name, (_, state) in contenders.items()]


def _figures(state, m, v, silent):
    live = ~silent
    lost = state.v[live] == 0
    root = np.sqrt(v[live])
    error = (state.m[live] - m[live]) / root
    relative = np.log(np.sqrt(state.v[live][~lost]) / root[~lost])
    yield f"{np.sqrt(np.mean(error**2)):.4f}"
    yield f"{np.sqrt(np.mean(relative**2)):.3f}"
    yield f"{np.mean(relative):+.3f}"
    yield f"{100 * lost.mean():.1f}%"
    yield f"{100 * np.mean(state.p[silent] != 0):.0f}%"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="save the tables in docs/")
    to_docs = parser.parse_args().docs
    console, tables = Console(width=150), {}
    missing = {name: package for name, package in PACKAGES.items() if importlib.util.find_spec(package) is None}
    names = [name for name in CONTENDERS if name not in missing]
    for stream, scale in STREAMS.items():
        title, rows = f"moments stored by; {stream}", measure(scale, names)
        tables[title] = rows
        shown = Table("", *COLUMNS, title=title, title_justify="left")
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    versions = [
        f"{package} {importlib.metadata.version(package)}" for name, package in PACKAGES.items() if name in names
    ]
    note = f"{STEPS:,} steps, {SIZE:,} elements; {', '.join([f'fastadam {fastadam.__version__}', *versions])}."
    console.print(note, *(f"Not installed: {package}." for package in missing.values()))
    if to_docs:
        saved = {"columns": COLUMNS, "tables": tables, "notes": [note]}
        SAVED.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
