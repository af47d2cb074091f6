"""A cloud of Gaussians painted into an image, in which each step moves those alone that are in view.

    python examples/splats.py    fit 1,500 Gaussians to a picture through small windows, and say how well

Gaussian splatting (arXiv 2308.04079) trains millions of Gaussians, of which a view shows some. What is out of view has
no gradient: its moments must not decay, and it must not drift on. The mask of what is in view becomes `SparseRows`, so
rows out of view are neither read nor written. Places, sizes and colours have learning rates of their own, as groups.
"""

import numpy as np

import fastadam

SIDE, WINDOW, COUNT, STEPS = 64, 16, 1500, 600
GROUPS = {"places": 0.15, "log_sizes": 0.03, "colours": 0.03}  # learning rates


def picture():
    """Rings that change colour, float32 [SIDE, SIDE, 3]."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) / SIDE - 0.5
    far = np.hypot(x, y)
    return np.stack([np.cos(20 * far) ** 2, 0.5 + x, np.where(far < 0.3, 0.9, 0.2)], axis=-1).astype(np.float32)


def cloud(seed=0):
    """Gaussians all over the picture: places in pixels, logarithms of sizes in pixels, colours."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(0, SIDE, (COUNT, 2)).astype(np.float32)
    return {"places": places, "log_sizes": np.full(COUNT, 0.3, np.float32), "colours": np.zeros((COUNT, 3), np.float32)}


def in_view(params, corner, width):
    """The mask of Gaussians that reach into the window."""
    reach = 3 * np.exp(params["log_sizes"])[:, None]
    return ((params["places"] > corner - reach) & (params["places"] < corner + width + reach)).all(axis=1)


def painted(params, rows, corner, width):
    """The window, as the sum of the Gaussians `rows`, and what the gradients need: weights and offsets of pixels."""
    places = params["places"][rows, None]
    pixels = np.moveaxis(np.mgrid[:width, :width], 0, -1).reshape(-1, 2) + corner
    offsets = pixels.astype(places.dtype) - places
    weights = np.exp(-0.5 * (offsets**2).sum(axis=2) * np.exp(-2 * params["log_sizes"][rows, None]))
    return weights.T @ params["colours"][rows], weights, offsets


def gradients(params, rows, corner, target):
    """Gradients of half the squared error, by the rows that are in view."""
    image, weights, offsets = painted(params, rows, corner, WINDOW)
    error = image - target[corner[0] : corner[0] + WINDOW, corner[1] : corner[1] + WINDOW].reshape(-1, 3)
    precision = np.exp(-2 * params["log_sizes"][rows])
    pull = (params["colours"][rows] @ error.T) * weights * precision[:, None]  # by Gaussian and pixel
    return {
        "places": np.einsum("np,npk->nk", pull, offsets),
        "log_sizes": (pull * (offsets**2).sum(axis=2)).sum(axis=1),
        "colours": weights @ error,
    }


def optimizer(params):
    return fastadam.Adam([{"params": {name: params[name]}, "lr": lr} for name, lr in GROUPS.items()])


def step(params, opt, corner, target):
    """Train on one window; return the mask of what was in view."""
    mask = in_view(params, corner, WINDOW)
    rows = np.flatnonzero(mask)
    grads = gradients(params, rows, corner, target)
    opt.step({name: fastadam.SparseRows(rows, values) for name, values in grads.items()})
    return mask


def quality(params, target):
    """Peak signal-to-noise ratio in dB."""
    image, *_ = painted(params, np.arange(COUNT), np.zeros(2, int), SIDE)
    return -10 * np.log10(np.mean((image.reshape(target.shape) - target) ** 2))


def train(params, target, steps=STEPS, seed=0):
    opt, rng, seen = optimizer(params), np.random.default_rng(seed), 0
    for _ in range(steps):
        seen += step(params, opt, rng.integers(0, SIDE - WINDOW + 1, 2), target).mean()
    return seen / steps


def main():
    params, target = cloud(), picture()
    print(f"before: {quality(params, target):.1f} dB")
    share = train(params, target)
    print(f"after {STEPS} windows: {quality(params, target):.1f} dB; a window showed {share:.0%} of {COUNT} Gaussians")


if __name__ == "__main__":
    main()
