"""The keyword arguments that the classes have beside those of torch."""

from collections.abc import Mapping
from functools import lru_cache
from inspect import Parameter, signature
from typing import Any

from fastadam.settings.checks import unexpected
from fastadam.settings.options import Options, StepKeywords


class TorchOptions(StepKeywords, total=False):
    """The further keyword arguments, for editors and type checkers; `fastadam.torch.Adam` describes them."""


def options_of(member: str, given: Mapping[str, Any], made: type) -> Options:
    """`given` as the options of a member of the family, checked; `made` is the class that got them."""
    if not given:
        return _checked(member)
    unknown = sorted(given.keys() - TorchOptions.__annotations__.keys())
    if unknown:
        # A class of a user may take whatever it passes on.
        ours = next(each for each in made.__mro__ if each.__module__.startswith("fastadam."))
        of_torch = [each.name for each in signature(ours).parameters.values() if each.kind != Parameter.VAR_KEYWORD]
        known = [*of_torch, *TorchOptions.__annotations__]
        raise unexpected(made.__name__, unknown[0], known)
    try:
        return _checked(member, *given.items())
    except TypeError:  # a list of dtypes has no hash; or an option is of the wrong kind, which is said again
        return Options(member, **given)


@lru_cache(maxsize=256, typed=True)  # 1 is no True
def _checked(member, *given):
    # One optimizer for each of thousands of parameters is common: the checks take longer than torch's constructor.
    return Options(member, **dict(given))
