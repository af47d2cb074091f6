"""HIPS autograd computes the gradients, fastadam takes the steps.

    python examples/hips_autograd.py    train a small network on two spirals (pip install "fastadam[examples]")

autograd differentiates ordinary NumPy. Its gradient of a loss by a dict of arrays is a dict of arrays, and that is
what `step` takes; the arrays of the dict are trained where they lie. autograd's own `autograd.misc.optimizers.adam`,
which makes new flat arrays at each step, gives the same to rounding.
"""

import autograd.numpy as np
from autograd import grad
from autograd.scipy.special import logsumexp

import fastadam

STEPS = 400
LEARNING_RATE = 0.02


def spirals(points=300, seed=0):
    """Points of two spirals, float64 [points, 2], and the spiral of each."""
    rng = np.random.default_rng(seed)
    labels = np.arange(points) % 2
    turn = 3 * np.sqrt(rng.uniform(0.05, 1, points))
    angle = 2 * turn + np.pi * labels
    places = np.stack([turn * np.cos(angle), turn * np.sin(angle)], axis=1)
    return places + 0.05 * rng.standard_normal(places.shape), labels


def initial(hidden=24, seed=0):
    rng = np.random.default_rng(seed)
    sizes = {"in": (2, hidden), "middle": (hidden, hidden), "out": (hidden, 2)}
    params = {name: rng.standard_normal(size) / np.sqrt(size[0]) for name, size in sizes.items()}
    return params | {f"{name}_bias": np.zeros(size[1]) for name, size in sizes.items()}


def scores(params, places):
    hidden = np.tanh(places @ params["in"] + params["in_bias"])
    hidden = np.tanh(hidden @ params["middle"] + params["middle_bias"])
    return hidden @ params["out"] + params["out_bias"]


def loss(params, places, labels):
    """Mean cross-entropy."""
    logits = scores(params, places)
    return np.mean(logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels])


def train(params, places, labels, steps=STEPS):
    """Train the arrays of `params` in place."""
    opt = fastadam.Adam(params, lr=LEARNING_RATE)
    gradient = grad(loss)
    for _ in range(steps):
        opt.step(gradient(params, places, labels))


def accuracy(params, places, labels):
    return np.mean(scores(params, places).argmax(axis=1) == labels)


def main():
    params, (places, labels) = initial(), spirals()
    print(f"before: loss {loss(params, places, labels):.3f}, {accuracy(params, places, labels):.0%} right")
    train(params, places, labels)
    print(f"after:  loss {loss(params, places, labels):.3f}, {accuracy(params, places, labels):.0%} right")


if __name__ == "__main__":
    main()
