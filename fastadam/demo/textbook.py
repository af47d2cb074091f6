"""Adam as a textbook writes it in NumPy: the baseline that fastadam is compared with."""

from collections.abc import Mapping
from typing import Any

import numpy as np


class TextbookAdam:
    r"""Adam on a dictionary of arrays, one array operation after the other, each with a new array for its result.

    With gradient g, at step t = 1, 2, ..., for every parameter p:

        g     = g + weight_decay * p
        m     = beta1 * m + (1 - beta1) * g
        v     = beta2 * v + (1 - beta2) * g**2
        m_hat = m / (1 - beta1**t)
        v_hat = v / (1 - beta2**t)
        p     = p - lr * m_hat / (sqrt(v_hat) + eps)

    All arithmetic is in the dtype of the parameters. It takes NumPy and CuPy arrays.

    Args:
        lr: Learning rate.
        betas: Decay rates of the first and second moment.
        eps: Added to the root of the bias-corrected second moment.
        weight_decay: L2 coefficient.

    Attributes:
        first_moments: name -> m, empty before the first step.
        second_moments: name -> v, empty before the first step.
        steps: How many steps have been taken.

    Example:
        >>> import numpy as np
        >>> from fastadam.demo.textbook import TextbookAdam
        >>> params = {"weights": np.ones(3, np.float32)}
        >>> params = TextbookAdam(lr=0.1).step(params, {"weights": np.full(3, 0.5, np.float32)})
        >>> params["weights"]
        array([0.9, 0.9, 0.9], dtype=float32)

    References:
        Algorithm 1 of Kingma and Ba, "Adam: A Method for Stochastic Optimization", https://arxiv.org/abs/1412.6980.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        self.lr = lr
        self.beta1, self.beta2 = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.steps = 0
        self.first_moments: dict[str, Any] = {}
        self.second_moments: dict[str, Any] = {}

    def step(self, params: Mapping[str, Any], grads: Mapping[str, Any]) -> dict[str, Any]:
        """The updated parameters, as new arrays; `params` and `grads` are only read.

        Args:
            params: name -> array of any shape, float32 or float64.
            grads: name -> gradient, of the shape and dtype of its parameter.
        """
        self.steps += 1
        bias_correction1 = 1 - self.beta1**self.steps
        bias_correction2 = 1 - self.beta2**self.steps
        updated = {}
        for name, p in params.items():
            g = grads[name]
            if self.weight_decay:
                g = g + self.weight_decay * p
            m = self.beta1 * self.first_moments.get(name, 0.0) + (1 - self.beta1) * g
            v = self.beta2 * self.second_moments.get(name, 0.0) + (1 - self.beta2) * g**2
            m_hat = m / bias_correction1
            v_hat = v / bias_correction2
            updated[name] = p - self.lr * m_hat / (np.sqrt(v_hat) + self.eps)
            self.first_moments[name], self.second_moments[name] = m, v
        return updated
