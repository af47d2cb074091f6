"""The keyword arguments that the classes have beside those of torch."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypedDict

from fastadam.settings.options import Options


class TorchOptions(TypedDict, total=False):
    """The further keyword arguments, for editors and type checkers; `fastadam.torch.Adam` describes them."""

    max_grad_norm: float | None
    nonfinite: str
    ema_decay: float | None
    copy_dtype: str | None
    zero_grad: bool
    moment_dtype: str | tuple[str | None, str | None] | None
    rounding: str
    master_weights: bool
    seed: int


def options_of(member: str, given: Mapping[str, Any]) -> Options:
    """`given` as the options of a member of the family, checked."""
    if not given:
        return _checked(member)
    unknown = sorted(given.keys() - TorchOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"got an unexpected keyword argument {unknown[0]!r}")
    try:
        return _checked(member, *given.items())
    except TypeError:  # a list of dtypes has no hash; or an option is of the wrong kind, which is said again
        return Options(member, **given)


@lru_cache(maxsize=256, typed=True)  # 1 is no True
def _checked(member, *given):
    # One optimizer for each of thousands of parameters is common: the checks take longer than torch's constructor.
    return Options(member, **dict(given))
