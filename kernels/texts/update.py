"""Recipe -> update: the stages of a member of the family and the shared ones around them, joined to a text.

On NumPy arrays the statements are the in-place reference; Numba compiles them as the CPU element; they are the body of
the CUDA kernel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

from fastadam.kernels import ADDRESSES, CARRIED, HYPER, SCALARS
from fastadam.kernels.texts import shared
from fastadam.kernels.texts.formats import NATIVE, Formats
from fastadam.kernels.texts.members import MEMBERS
from fastadam.kernels.texts.text import Text, block, function, join


@dataclass(frozen=True, eq=False)
class Update:
    """One element update and the fold of its scalars.

    Attributes:
        name: Name of the member of the family.
        text: The statements of the element.
        fold: The statements of the fold, float64, once a step and clock.
        buffers: Names of the buffers that an element has a value of: "p", "g" if it is read, those of the member...
        storage: How the buffers are stored.
        hyper: Names of the hyperparameters, in the order of their table.
        carried: Names of what is carried from step to step, in the order of its table; `step` counts the steps taken.
    """

    name: str
    text: Text
    fold: Text
    buffers: tuple[str, ...]
    storage: Formats
    hyper: tuple[str, ...]
    carried: tuple[str, ...]

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
        return tuple(name for name in self.text.arguments if name not in self.buffers)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the table's columns: the scalars, and what stochastic rounding needs."""
        return self.scalars + (("turn", "toss") if self.storage.dithers else ())

    @cached_property
    def element(self) -> Callable:
        """`element(*buffers, *scalars) -> written`: the text as a function."""
        return function(self._element_source())

    @cached_property
    def fold_row(self) -> Callable:
        """`fold_row(hyper, carried, grad_scale, table)`: the fold as a function on rows of arrays."""
        return function(self._fold_source())

    @cached_property
    def sources(self) -> str:
        """The sources of the two functions, for the name of a cache."""
        return self._element_source() + self._fold_source()

    def _element_source(self):
        return block(
            f"def {self.name}({', '.join(self.buffers + self.scalars)}):",
            *self.text.statements,
            f"return {', '.join(self.written)}",
        )

    def _fold_source(self):
        needed = {*self.fold.arguments, *self.columns}
        return block(
            "def fold_row(hyper, carried, grad_scale, table):",
            *(f"{name} = hyper[{index}]" for index, name in enumerate(self.hyper) if name in needed),
            *(f"{name} = carried[{index}]" for index, name in enumerate(self.carried) if name in needed),
            *self.fold.statements,
            *(f"carried[{index}] = {name}" for index, name in enumerate(self.carried) if name in self.fold.assigned),
            *(f"table[{index}] = {name}" for index, name in enumerate(self.columns)),
            "return",
        )


@dataclass(frozen=True)
class Recipe:
    """What an update is joined from.

    Attributes:
        member: A key of `MEMBERS`.
        convention: Where eps stands, and what AMSGrad is, as in the system of that name.
        amsgrad: Divide by the root of the largest second moment so far.
        decay: "none", "coupled" (L2), "decoupled" (times lr) or "free" (not times lr).
        eps_root: Whether something is added inside the root.
        clip_value: Whether gradients are clipped by value.
        clip_norm: Whether the gradients of each parameter are clipped by their norm.
        ema: Whether an average of the parameters is kept.
        ema_warmup: Whether its decay grows in the first steps.
        zero_grad: Whether the gradients are zeroed.
        small_betas: Numbers of the betas below 0.5 that need another stage: `Member.small`.
        copy: Whether a copy of the parameters is written; one in other than the arithmetic's dtype is in any case.
        storage: How the buffers are stored.
    """

    member: str = "adam"
    convention: str = "torch"
    amsgrad: bool = False
    decay: str = "none"
    eps_root: bool = False
    clip_value: bool = False
    clip_norm: bool = False
    ema: bool = False
    ema_warmup: bool = False
    zero_grad: bool = False
    small_betas: tuple[int, ...] = ()
    copy: bool = False
    storage: Formats = NATIVE


@cache
def update_of(recipe: Recipe) -> Update:
    """The update of `recipe`: the same one for recipes with the same stages and formats."""
    member, stages = MEMBERS[recipe.member], _element_stages(recipe)
    text = join(*stages)
    buffers = tuple(name for name in ("p", "g", *member.buffers, "ema", "copy") if name in text.arguments)
    storage = recipe.storage.only(buffers)
    return _update(
        member.name,
        text,
        join(*_fold_stages(recipe, storage.dithers)),
        buffers,
        storage,
        member.hyper_names,
        member.carried_names,
    )


def compose(name: str, buffers: tuple[str, ...], *stages: Callable) -> Update:
    """The update `name` of these stages on `buffers`, whose scalars do not come from a fold."""
    return _update(name, join(*stages), join(), buffers, NATIVE, (), ())


@cache
def _update(*fields):
    update = Update(*fields)
    assert len(update.columns) <= SCALARS
    assert len(update.flats) + 2 <= ADDRESSES
    assert len(update.hyper) <= HYPER
    assert len(update.carried) <= CARRIED
    return update


def _element_stages(recipe):
    stages: list[Callable] = [shared.scale_gradient]
    if recipe.clip_value:
        stages += [shared.clip_gradient]
    if recipe.decay == "coupled":
        stages += [shared.couple_decay]
    stages += MEMBERS[recipe.member].element(recipe)
    if recipe.ema:
        stages += [shared.average]
    if recipe.copy or recipe.storage["copy"] != "native":
        stages += [shared.copy]
    if recipe.zero_grad:
        stages += [shared.zero_gradient]
    return tuple(stages)


def _fold_stages(recipe, dithers):
    stages: list[Callable] = [shared.begin]
    if recipe.clip_norm:
        stages += [shared.clip_scale]
    if recipe.decay == "decoupled":
        stages += [shared.decay_by_lr]
    if recipe.decay == "free":
        stages += [shared.decay_alone]
    stages += MEMBERS[recipe.member].fold(recipe)
    if recipe.ema:
        stages += [shared.warm_ema_scalars if recipe.ema_warmup else shared.ema_scalars]
    if recipe.zero_grad:
        stages += [shared.zero_scalars]
    if dithers:
        stages += [shared.next_turn]
    return tuple(stages)
