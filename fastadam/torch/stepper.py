"""What an optimizer has from its first step on: nothing in it is relied on before it has been compared with what is."""

from collections.abc import Mapping, Sequence
from itertools import chain
from math import isfinite
from operator import is_, itemgetter
from threading import RLock
from typing import Any

import numpy as np
import torch

from fastadam.kernels.texts.casts import CHUNK
from fastadam.memory.advice import tensor_problem
from fastadam.memory.formats import formats_of as formats_by_default
from fastadam.memory.parameters import random_place
from fastadam.settings.options import Options, moment_dtypes
from fastadam.settings.recipes import check_together
from fastadam.torch.device_share import DeviceShare
from fastadam.torch.parameter import TensorParameter
from fastadam.torch.share import Member, Share
from fastadam.torch.state import count, formats_of, kept_tensors
from fastadam.torch.tensors import (
    NAMES,
    arithmetic_of,
    check_new_tensors,
    check_part,
    first_element,
    is_on_device,
    is_sharded,
    item_of,
    layout_of,
    local,
    number_of,
    zero,
)
from fastadam.torch.turns import share_memory, turns_of

_HYPER = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay")
_ABSENT = {"eps": 0.0, "amsgrad": False, "decoupled_weight_decay": False}


class Stepper:
    """Takes the steps of one optimizer."""

    def __init__(self, options: Options, group: Mapping[str, Any]):
        """Make one for groups with the keys of `group`."""
        self._options = options
        self._keys = [key for key in (*_HYPER, *options.family_member.hyper) if key in group]
        self._values, self._beta_count = itemgetter(*self._keys), len(options.family_member.betas)
        self._one_step = RLock()  # another thread's step would put its addresses into the tables of this one
        self._objects: list[Any] = []
        self._read: list[tuple] = []
        self._has_tensors = False
        self._amsgrad: list[bool] = []
        self._without_state: list[Any] = []
        self.shares: list[Share] = []
        # Those that were stepped in CUDA graphs, which do not hold what replays write.
        self._of_graphs: list[Share] = []
        # Addresses of gradients that were found to share no memory.
        self._known_apart: list[bytes] = []
        self.skipped = 0

    def step(
        self, groups: Sequence[dict], state: Any, grad_scale: float = 1.0, divisor: Any = None, found_inf: Any = None
    ) -> None:
        """Step all parameters that have a gradient.

        `divisor` and `found_inf` are tensors of one element on a GPU: what gradients are divided by, and what is not 0
        where a step is not taken.
        """
        with self._one_step:
            gradients = self._located(groups, state)
            told = divisor is not None or found_inf is not None
            if told and not all(share.is_on_device for share in self.shares):
                # Where something is on the host, that decides.
                self.step_as_read(groups, state, divisor, found_inf)
                return
            if self._options.zero_grad:
                gradients = self._apart(gradients)
            for share, located in zip(self.shares, gradients, strict=True):
                if not share.step(located, grad_scale, divisor, found_inf):
                    self.skipped += 1

    def step_as_read(self, groups: Sequence[dict], state: Any, divisor: Any, found_inf: Any) -> None:
        """The same by what the host reads of `divisor` and `found_inf`, numbers or tensors, for which it waits."""
        if found_inf is not None and item_of(found_inf, "found_inf"):
            self.skip(groups)
        else:
            self.step(groups, state, 1.0 if divisor is None else _inverse(divisor))

    def send_settings(self, groups: Sequence[dict], state: Any) -> None:
        """Let replays of a captured step go on with the numbers of the groups."""
        with self._one_step:
            if any(share.has_moved for share in self.shares) or not self._is_as_seen(groups, state):
                raise RuntimeError(
                    "parameters, their states and groups must be those of the last step while a CUDA graph with it is "
                    "replayed, and something was freed, moved, added or removed: take a step, and capture it anew"
                )

    def recount(self) -> None:
        """Let the numbers in the state be those that GPUs have counted."""
        with self._one_step:
            for share in self.shares:
                share.recount()

    @property
    def skipped_steps(self) -> int:
        """How many steps have been skipped; those that a GPU has skipped are waited for."""
        return self.skipped + max((share.skipped_on_device for share in self.shares), default=0)

    def skips_on(self, device: Any) -> Any:
        """The same as a tensor on a device, which nothing waits for."""
        skipped = torch.full((), float(self.skipped), device=device)
        for share in self.shares:
            skipped += share.skips
        return skipped

    def skip(self, groups: Sequence[dict]) -> None:
        """Count a step that is not taken; `zero_grad` holds for it all the same."""
        self.skipped += 1
        if self._options.zero_grad:
            for p in chain.from_iterable(group["params"] for group in groups):
                if p.grad is not None:
                    zero(p.grad)

    def _located(self, groups, state):
        """The gradients of each share; the shares are made anew if something is no longer what it was."""
        if self._is_as_seen(groups, state):
            gradients = [share.locate() for share in self.shares]
            if None not in gradients:
                return gradients
        self._look(groups, state)
        return [share.locate() for share in self.shares]

    def _apart(self, gradients):
        """The same, or copies if some share memory: one that is zeroed may not have been read for another parameter."""
        stamp = [each.addresses.tobytes() for each in gradients]
        if stamp == self._known_apart:
            return gradients
        addresses = np.concatenate([each.addresses for each in gradients])
        sizes = np.concatenate([share.bytes for share in self.shares]) * (addresses != 0)
        if share_memory(addresses, sizes):
            return [share.copies() for share in self.shares]
        self._known_apart = stamp
        return gradients

    def _is_as_seen(self, groups, state):
        objects = _objects(groups, state)
        if len(objects) != len(self._objects) or not all(map(is_, objects, self._objects)):
            return False
        if self._without_state and any(p.grad is not None for p in self._without_state):
            return False
        read = self._read_groups(groups)
        try:
            is_same = read == self._read and not self._has_tensors
        except RuntimeError:  # a tensor that is no number, which is refused by name
            is_same = False
        return is_same or self._refresh(groups, read)

    def _read_groups(self, groups):
        return [(len(group["params"]), *self._values(group)) for group in groups]

    def _refresh(self, groups, read):
        """Take over settings; False if they need other tensors, or the groups are others."""
        if [each[0] for each in read] != [each[0] for each in self._read]:
            return False
        settings = self._settings(groups)
        if [each["amsgrad"] for each in settings] != self._amsgrad:
            return False
        for share in self.shares:
            share.refresh(settings)
        self._note(read)
        return True

    def _note(self, read):
        self._read = read
        # A tensor may be written between steps.
        self._has_tensors = any(isinstance(value, torch.Tensor) for value in _numbers(read))

    def _settings(self, groups):
        """What the groups say, as plain numbers."""
        for index, group in enumerate(groups):
            if group.get("differentiable"):
                raise ValueError(
                    f"`differentiable` must be False, got True in param_groups[{index}]: autograd knows "
                    "nothing of what is launched"
                )
        settings = [
            {
                **_ABSENT,
                **{key: _plain(value, key, index) for key, value in zip(self._keys, self._values(group), strict=True)},
            }
            for index, group in enumerate(groups)
        ]
        for index, each in enumerate(settings):
            betas = each["betas"]
            if type(betas) is not tuple or len(betas) != self._beta_count or not 0.0 <= min(betas) <= max(betas) < 1.0:
                raise ValueError(
                    f"`param_groups[{index}]['betas']` must be {self._beta_count} numbers in [0, 1), got {betas}"
                )
        return settings

    # --- everything anew

    def _look(self, groups, state):
        """Find all parameters and their states, and make shares of them; all is checked first."""
        settings = self._settings(groups)
        # What is made in inference mode could not be written outside.
        with torch.inference_mode(False), torch.no_grad():
            check_new_tensors()
            found = list(self._found(groups, state, settings))
            count({label: state[p] for p, _, label, *_ in found}, self._options)
            members = [self._member(p, state[p], groups, *known) for p, *known in found]
            turns = turns_of([list(member.parameter.tensors.values()) for member in members])
            apart: dict[Any, list[Member]] = {}
            for (p, *_), member, turn in sorted(zip(found, members, turns, strict=True), key=itemgetter(2)):
                apart.setdefault((p.device, is_sharded(p), turn), []).append(member)
            if self._options.reduces:
                self._check_norm(apart)
            self.skipped = self.skipped_steps
            self._of_graphs += [share for share in self.shares if share.engine.plan.graphs.steps]
            self.shares = [self._share(members, settings) for members in apart.values()]
        self._known_apart = []
        self._amsgrad = [each["amsgrad"] for each in settings]
        self._note(self._read_groups(groups))
        self._objects = _objects(groups, state)

    def _share(self, members, settings):
        kind = DeviceShare if is_on_device(members[0].tensors["p"]) else Share
        return kind(members, settings, self._options)

    def _check_norm(self, apart):
        """Raise unless the norm of the gradients that are here is the norm of all."""
        devices, sharded = {device for device, *_ in apart}, any(sharded for _, sharded, _ in apart)
        if sharded or len(devices) > 1:
            got = "DTensors, of which each process has a part" if sharded else ", ".join(sorted(map(str, devices)))
            raise ValueError(
                "`max_grad_norm`, `max_grad_norm_per_param` and `nonfinite` need whole parameters on one device, "
                f"got {got}: clip by `torch.nn.utils.clip_grad_norm_` before the step"
            )
        late = next((members[0].label for (*_, turn), members in apart.items() if turn), None)
        if late is not None:
            raise ValueError(
                "`max_grad_norm`, `max_grad_norm_per_param` and `nonfinite` need parameters that share no memory, got "
                f"`{late}`, which shares some with one before: make them one tensor"
            )

    def _found(self, groups, state, settings):
        """(parameter, position of its group, label, position, name, layout) of each that has a gradient or a state."""
        position, seen = 0, set()
        self._without_state = []
        for index, group in enumerate(groups):
            names = group.get("param_names") or [None] * len(group["params"])
            for number, (p, name) in enumerate(zip(group["params"], names, strict=True)):
                position += 1
                if p.grad is None and not state.get(p):
                    self._without_state.append(p)
                    continue
                label = name or f"param_groups[{index}]['params'][{number}]"
                if p in seen:
                    raise ValueError(f"`{label}` must be in its group once, got it twice: it would be stepped twice")
                seen.add(p)
                yield p, index, label, position - 1, name, self._checked(p, label, group, settings[index])

    def _checked(self, p, label, group, settings):
        """The layout of a parameter; raise unless it can be stepped where it lies."""
        if p.device.type not in ("cpu", "cuda"):
            raise TypeError(f"`{label}` must be in CPU or CUDA memory, got {p.device}")
        part = local(p)
        problem = tensor_problem(part)
        if problem is not None:
            raise TypeError(f"`{label}` {problem}")
        check_part(p, part, label)
        if p.dtype not in NAMES:
            raise TypeError(f"`{label}` must be float32, float64, bfloat16 or float16, got {p.dtype}")
        layout = layout_of(part)
        if layout is None:
            raise ValueError(
                f"`{label}` must be dense to be stepped where it lies, got strides {part.stride()} for shape "
                f"{tuple(part.shape)}"
            )
        dtypes = moment_dtypes(group.get("moment_dtype", self._options.moment_dtype))
        check_together(settings, self._options, [formats_by_default(NAMES[p.dtype], p.numel(), dtypes, self._options)])
        return layout

    def _member(self, p, entry, groups, index, label, position, name, layout):
        options = self._options
        tensors = kept_tensors(entry, p, layout, groups[index], options, label)
        # Parts of a DTensor have the random words of the whole, if they begin at a multiple of CHUNK elements.
        chunks = -(-first_element(p) // CHUNK)
        place = (random_place(options.seed, name, position) + chunks) % 2**32
        parts = {flat: local(tensor) for flat, tensor in tensors.items()}
        arithmetic = NAMES[arithmetic_of(p)]
        parameter = TensorParameter(label, place, layout, parts, formats_of(tensors, options), arithmetic)
        return Member(tensors, parameter, label, index, entry)


def _inverse(scale):
    number = number_of(scale, "grad_scale")
    if number == 0.0:
        raise ValueError("`grad_scale` must not be 0, got 0: gradients are divided by it")
    return 1.0 / number


def _objects(groups, state):
    """All tensors of parameters and states, with what has them: a state may get another owner."""
    objects = []
    for group in groups:
        objects += group["params"]
    for p, entry in state.items():
        objects += (p, entry)
        if isinstance(entry, dict):
            objects += entry.values()
    return objects


def _numbers(read):
    for value in chain.from_iterable(read):
        yield from value if isinstance(value, (tuple, list)) else (value,)


def _plain(value, key, index):
    """A setting without tensors: a learning rate may be one, and betas may be."""
    if isinstance(value, bool):
        return value
    if type(value) in (float, int) and isfinite(value):
        return float(value)
    if isinstance(value, (tuple, list)):
        return tuple(_plain(each, key, index) for each in value)
    return number_of(value, f"param_groups[{index}]['{key}']")
