"""The element update, written once: every stage that a step can have, and the updates that are joined from them.

Adam is Algorithm 1 of Kingma and Ba, arXiv 1412.6980, AdaMax its Algorithm 2; the decoupled decay is that of
Loshchilov and Hutter, arXiv 1711.05101; AMSGrad of Reddi, Kale and Kumar, arXiv 1904.09237; NAdam of Dozat (ICLR 2016
workshop); RAdam of Liu et al., arXiv 1908.03265. The scalars of each stage are made by the stage of the same purpose in
:mod:`fold <fastadam.kernels.texts.fold>`.

On NumPy arrays the statements are the in-place reference; Numba compiles them as the CPU element; they are the body of
the CUDA kernel.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from numpy import maximum, minimum, sqrt

from fastadam.kernels import SCALARS
from fastadam.kernels.texts import fold
from fastadam.kernels.texts.formats import NATIVE, Formats
from fastadam.kernels.texts.text import Text, block, function, join

# Parameters, gradients, first and second moment; largest second moment, average of the parameters, their 16-bit copy.
BUFFERS = ("p", "g", "m", "v", "v_max", "ema", "copy")


def scale_gradient(g, grad_scale):
    g = grad_scale * g


def clip_gradient(g, clip_value):
    g = minimum(maximum(g, -clip_value), clip_value)


def couple_decay(p, g, weight_decay):
    # L2: the decay is part of the gradient.
    g = g + weight_decay * p


def first_moment(g, m, blend1):
    m += blend1 * (g - m)


def short_first_moment(g, m, beta1):
    # With beta1 < 0.5 the form above would subtract m from itself.
    m = g + beta1 * (m - g)


def second_moment(g, v, blend2):
    v += blend2 * (g * g - v)


def short_second_moment(g, v, beta2):
    v = g * g + beta2 * (v - g * g)


def infinity_moment(g, v, beta2, inner_eps):
    v = maximum(beta2 * v, abs(g) + inner_eps)


def decouple_decay(p, decay):
    # A factor, so that a mask of infinities stays one.
    p *= decay


def root_of_v(v):
    root = sqrt(v)


def root_of_shifted_v(v, eps_root):
    root = sqrt(v + eps_root)


def root_of_largest_v(v, v_max, correction2):
    v_max = maximum(v_max, correction2 * v)
    root = sqrt(v_max)


def root_of_shifted_largest_v(v, v_max, correction2, eps_root):
    v_max = maximum(v_max, correction2 * v)
    root = sqrt(v_max + eps_root)


def descend(p, m, root, step_size, eps):
    p -= step_size * m / (root + eps)


def descend_nesterov(p, g, m, root, gradient_size, step_size, eps):
    p -= (gradient_size * g + step_size * m) / (root + eps)


def descend_rectified(p, m, root, step_size, eps, least, most):
    # Not rectified, with least = most = 1: by the first moment alone.
    p -= step_size * m / maximum(minimum(root + eps, most), least)


def descend_infinity(p, m, v, step_size, eps):
    p -= step_size * m / (v + eps)


def average(p, ema, ema_blend):
    ema += ema_blend * (p - ema)


def copy(p, copy):
    copy = p


def zero_gradient(g, zero):
    g = zero


@dataclass(frozen=True, eq=False)
class Update:
    """One element update and the fold of its scalars.

    Attributes:
        name: Of the member of the family.
        text: The statements of the element.
        fold: The statements of the fold, float64, once a step and row of hyperparameters.
        storage: How the buffers are stored.
        hyper: Names of its hyperparameters, in the order of their table.
        carried: Names of what is carried from step to step, in the order of its table; `step` counts the steps taken.
        element: `element(*buffers, *scalars) -> written`, the text as a function.
        fold_row: `fold_row(hyper, carried, grad_scale, table)`, the fold as a function on rows of arrays.
        sources: The sources of the two functions, for the name of a cache.
    """

    name: str
    text: Text
    fold: Text
    storage: Formats = NATIVE
    hyper: tuple[str, ...] = fold.HYPER
    carried: tuple[str, ...] = fold.CARRIED
    element: Callable = len
    fold_row: Callable = len
    sources: str = ""

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the buffers that an element has a value of, in the order of `BUFFERS`."""
        return tuple(name for name in BUFFERS if name in self.text.arguments)

    @property
    def flats(self) -> tuple[str, ...]:
        """Names of the flat arrays of all buffers but the gradients, which need not lie in one."""
        return tuple(flat for name in self.buffers if name != "g" for flat in self.storage.flats(name))

    @property
    def written(self) -> tuple[str, ...]:
        """Names of the buffers that are written. Of the gradients only zeros are kept."""
        kept = ("g",) if "zero" in self.scalars else ()
        return tuple(name for name in self.buffers if name != "g" and name in self.text.assigned) + kept

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of the scalars of the element, in the order of the table's columns."""
        return tuple(name for name in self.text.arguments if name not in BUFFERS)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the table's columns: the scalars, and what stochastic rounding needs."""
        return self.scalars + (("turn", "toss") if self.storage.dithers else ())


def compose(
    name: str, stages: tuple[Callable, ...], fold_stages: tuple[Callable, ...], storage: Formats = NATIVE
) -> Update:
    """The update `name` of these element stages, whose scalars the fold stages make."""
    plain = Update(name, join(*stages), join(*fold_stages), storage)
    assert len(plain.columns) <= SCALARS
    element, fold_row = _element_source(plain), _fold_source(plain)
    return replace(plain, element=function(element), fold_row=function(fold_row), sources=element + fold_row)


def _element_source(update):
    return block(
        f"def {update.name}({', '.join(update.buffers + update.scalars)}):",
        *update.text.statements,
        f"return {', '.join(update.written)}",
    )


def _fold_source(update):
    text = update.fold
    needed = {*text.arguments, *update.columns}
    return block(
        "def fold_row(hyper, carried, grad_scale, table):",
        *(f"{name} = hyper[{index}]" for index, name in enumerate(update.hyper) if name in needed),
        *(f"{name} = carried[{index}]" for index, name in enumerate(update.carried) if name in needed),
        *text.statements,
        *(f"carried[{index}] = {name}" for index, name in enumerate(update.carried) if name in text.assigned),
        *(f"table[{index}] = {name}" for index, name in enumerate(update.columns)),
        "return",
    )


@dataclass(frozen=True)
class Recipe:
    """What an update is joined from.

    Attributes:
        member: "adam", "nadam", "adamax" or "radam".
        convention: Where eps stands, and what AMSGrad is, as in the system of that name.
        amsgrad: Divide by the root of the largest second moment so far.
        decay: "none", "coupled" (L2), "decoupled" (times lr) or "free" (not times lr).
        eps_root: Whether something is added inside the root.
        clip_value: Whether gradients are clipped by value.
        ema: Whether an average of the parameters is kept.
        zero_grad: Whether the gradients are zeroed.
        short1: Whether beta1 is below 0.5.
        short2: Whether beta2 is.
        storage: How the buffers are stored; a copy of the parameters is written if it says how.
    """

    member: str = "adam"
    convention: str = "torch"
    amsgrad: bool = False
    decay: str = "none"
    eps_root: bool = False
    clip_value: bool = False
    ema: bool = False
    zero_grad: bool = False
    short1: bool = False
    short2: bool = False
    storage: Formats = NATIVE


@cache
def update_of(recipe: Recipe) -> Update:
    """The update of `recipe`."""
    return compose(recipe.member, _element_stages(recipe), fold.stages(recipe), recipe.storage)


_ROOTS: dict[tuple[bool, bool], Callable] = {
    # amsgrad, eps_root
    (False, False): root_of_v,
    (False, True): root_of_shifted_v,
    (True, False): root_of_largest_v,
    (True, True): root_of_shifted_largest_v,
}
_DESCENTS: dict[str, Callable] = {
    "adam": descend,
    "nadam": descend_nesterov,
    "adamax": descend_infinity,
    "radam": descend_rectified,
}


def _element_stages(recipe):
    stages: list[Callable] = [scale_gradient]
    stages += [clip_gradient] * recipe.clip_value
    stages += [couple_decay] * (recipe.decay == "coupled")
    stages += [short_first_moment if recipe.short1 else first_moment]
    if recipe.member == "adamax":
        stages += [infinity_moment]
    else:
        stages += [short_second_moment if recipe.short2 else second_moment]
    stages += [decouple_decay] * (recipe.decay in ("decoupled", "free"))
    stages += [_ROOTS[recipe.amsgrad, recipe.eps_root]] * (recipe.member != "adamax")
    stages += [_DESCENTS[recipe.member]]
    stages += [average] * recipe.ema
    stages += [copy] * (recipe.storage["copy"] != "native")
    stages += [zero_gradient] * recipe.zero_grad
    return tuple(stages)


ADAM = update_of(Recipe())
ADAMW = update_of(Recipe(decay="decoupled"))
ADAM_L2 = update_of(Recipe(decay="coupled"))
