"""The optimizer classes, under Keras' names and with Keras' arguments."""

from fastadam.keras.host import keras
from fastadam.keras.optimizer import Fused


@keras.saving.register_keras_serializable(package="fastadam")
class Adam(Fused, keras.optimizers.Adam):
    """keras.optimizers.Adam as one fused pass over all variables, in place, where they lie.

    With gradient g and alpha = learning_rate * sqrt(1 - beta_2**t) / (1 - beta_1**t), at step t = 1, 2, ..., for every
    element:

        g = g / loss_scale_factor, clipped by `clipnorm`, `global_clipnorm` or `clipvalue`
        p = p - learning_rate * weight_decay * p
        m = m + (1 - beta_1) * (g - m)                  "momentum"
        v = v + (1 - beta_2) * (g * g - v)              "velocity"; with `amsgrad` its largest is "velocity_hat"
        p = p - alpha * m / (sqrt(v) + epsilon)
        a = a + (1 - ema_momentum) * (p - a)            "average", with `use_ema`

    It takes the arguments of Keras' class, and is an instance of it; its variables have Keras' names and order, so that
    states of either class are loaded into the other. `gradient_accumulation_steps` and what goes with them, and
    `clipnorm` in CUDA memory, are Keras' own passes before this one: docs/keras.md.

    Args:
        args: As in keras.optimizers.Adam, by position or by name: learning_rate (a float, a schedule or a function),
            beta_1, beta_2, epsilon, amsgrad, weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum,
            ema_overwrite_frequency, loss_scale_factor, gradient_accumulation_steps, name.
        kwargs: The same.

    Raises:
        TypeError: an argument that Keras does not have, or a number that is none; a variable that cannot be stepped.
        ValueError: a number that is out of range; a gradient of another shape or device. Nothing has been written then.

    Example:
        >>> import keras, fastadam.keras
        >>> weights = keras.Variable([1.0, 2.0])
        >>> optimizer = fastadam.keras.Adam(learning_rate=0.1)
        >>> optimizer.apply([keras.ops.convert_to_tensor([3.0, -0.5])], [weights])
        >>> [round(weight, 5) for weight in weights.value.tolist()]
        [0.9, 2.1]

    References:
        Kingma and Ba, "Adam: A Method for Stochastic Optimization", https://arxiv.org/abs/1412.6980.
        Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond", https://arxiv.org/abs/1904.09237.
    """

    _member = "adam"


@keras.saving.register_keras_serializable(package="fastadam")
class AdamW(Fused, keras.optimizers.AdamW):
    """keras.optimizers.AdamW as one fused pass: `Adam` with weight decay, 0.004 by default.

    Takes the arguments of Keras' class; `exclude_from_weight_decay` is Keras' own.

    Example:
        >>> import keras, fastadam.keras
        >>> weights = keras.Variable([1.0, 1.0])
        >>> optimizer = fastadam.keras.AdamW(learning_rate=0.1, weight_decay=0.5)
        >>> optimizer.apply([keras.ops.zeros(2)], [weights])
        >>> [round(weight, 5) for weight in weights.value.tolist()]
        [0.95, 0.95]

    References:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", https://arxiv.org/abs/1711.05101.
    """

    _member = "adam"


@keras.saving.register_keras_serializable(package="fastadam")
class Lion(Fused, keras.optimizers.Lion):
    """keras.optimizers.Lion as one fused pass: steps of one size, by the sign of a momentum.

    With the gradient g as in `Adam`, for every element:

        p = p - learning_rate * weight_decay * p
        p = p - learning_rate * sign(beta_1 * m + (1 - beta_1) * g)
        m = m + (1 - beta_2) * (g - m)                  "momentum"

    Takes the arguments of Keras' class.

    Example:
        >>> import keras, fastadam.keras
        >>> weights = keras.Variable([1.0, 2.0])
        >>> optimizer = fastadam.keras.Lion(learning_rate=0.25)
        >>> optimizer.apply([keras.ops.convert_to_tensor([3.0, -0.5])], [weights])
        >>> weights.value.tolist()
        [0.75, 2.25]

    References:
        Chen et al., "Symbolic Discovery of Optimization Algorithms", https://arxiv.org/abs/2302.06675.
    """

    _member = "lion"
