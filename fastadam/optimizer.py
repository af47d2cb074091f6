"""What all optimizer classes share: check, gather, reduce, launch."""

from collections.abc import Hashable, Mapping
from math import inf
from typing import Any

import numpy as np

from fastadam.memory.arrays import kernels
from fastadam.memory.buffers import Buffers, Views, as_16_bit
from fastadam.memory.formats import is_small, storage_of, warn_of_vanishing
from fastadam.memory.parameters import apart, check_together, exclude, parse_group, parse_groups, place, replaced_error
from fastadam.memory.usage import MemoryUsage, memory_usage
from fastadam.settings.checks import flag, nonnegative
from fastadam.settings.groups import ParamGroup
from fastadam.settings.options import CONVENTIONS, OPTION_NAMES, Options
from fastadam.settings.recipes import check_settings, derived_seed
from fastadam.state import dump_state, load_state
from fastadam.step.gradients import Gradients, Located, sharing_memory
from fastadam.step.plan import Plan
from fastadam.step.reduction import Reduction, not_finite_error
from fastadam.step.rows import Past, Rows, row_indices, sparse_launches


class Optimizer:
    """A member of the Adam family; see `fastadam.Adam` for arguments, attributes and errors."""

    def __init__(self, params: Any, member: str, defaults: dict[str, Any], options: dict[str, Any]):
        unknown = sorted(options.keys() - OPTION_NAMES)
        if unknown:
            raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {unknown[0]!r}")
        self._options = Options(member, **options)
        preset = CONVENTIONS[self._options.convention]
        presets = {
            "eps": preset.eps,
            "decoupled_weight_decay": preset.decoupled,
            "momentum_decay": preset.momentum_decay,
        }
        self._defaults = {key: presets.get(key) if value is None else value for key, value in defaults.items()}
        self._plans: list[Plan] = []
        # Plan and row of each group, in the order in which the groups were given.
        self._rows: list[tuple[Plan, int]] = []
        self._gradients: list[Gradients] = []
        # Position of a plan, and its past, with sparse="exact".
        self._pasts: list[tuple[int, Past]] = []
        self._bindings: list[tuple] = []
        self._grads: Views | None = None
        self._written: list[Located] | None = None
        self._reduction: Reduction | None = None
        self._add(exclude(parse_groups(params), self._options.exclude_from_weight_decay, required=True))

    def _add(self, groups):
        if "float8" in self._options.moment_dtypes:
            groups = apart(groups, is_small)
        check_together([parameter for parameters, _ in groups for parameter in parameters], list(self.all_buffers))
        kernels(groups[0][0][0].array, groups[0][0][0].label)
        checked = [
            ParamGroup(tuple(parameter.name for parameter in parameters), {**self._defaults, **settings})
            for parameters, settings in groups
        ]
        for group in checked:
            check_settings(group, self._options)
        storages = [storage_of(group, self._options) for group, _ in groups]
        for (parameters, _), group, storage in zip(groups, checked, storages, strict=True):
            warn_of_vanishing(parameters, group, storage)
        placed, bindings = place([parameters for parameters, _ in groups], storages)
        home = {}
        for buffers in placed:
            members = [group for group in checked if group["params"][0] in buffers.segments]
            plan = Plan(buffers, members, self._options, derived_seed(self._options.seed, len(self._plans)))
            home.update({id(group): (plan, row) for row, group in enumerate(members)})
            self._plans.append(plan)
            self._gradients.append(Gradients(plan))
            if self._options.sparse == "exact":
                self._pasts.append((len(self._plans) - 1, Past(plan)))
        self._rows += [home[id(group)] for group in checked]
        self._bindings += bindings
        self._params = self._views("p")
        self._grads = self._written = None
        if self._options.reduces:
            self._reduction = Reduction(self._plans, self._options, self._reduction)

    def _views(self, flat: str) -> Views:
        """Name -> view of a flat buffer, in the order of the groups."""
        return Views(
            {name: plan.buffers.part(name, flat) for plan, row in self._rows for name in plan.groups[row]["params"]}
        )

    @property
    def param_groups(self) -> tuple[ParamGroup, ...]:  # noqa: D102 (described in Adam)
        return tuple(plan.groups[row] for plan, row in self._rows)

    @property
    def params(self) -> Views:  # noqa: D102 (described in Adam)
        return self._params

    @property
    def grads(self) -> Views:  # noqa: D102 (described in Adam)
        if self._grads is None:
            for gradients in self._gradients:
                gradients.use_buffer()
            views = {name: view for gradients in self._gradients for name, view in gradients.views.items()}
            self._grads = Views({name: views[name] for name in self._params})
        return self._grads

    @property
    def ema(self) -> Views:
        """Name -> view of the exponential moving average of the parameter (with `ema_decay`)."""
        if self._options.ema_decay is None:
            raise AttributeError("`ema` needs `ema_decay`, with which the optimizer keeps the average")
        return self._views("ema")

    @property
    def copies(self) -> Views:
        """Name -> view of the 16-bit copy of the parameter (with `copy_dtype`), as of the last step."""
        if self._options.copy_dtype is None:
            raise AttributeError("`copies` needs `copy_dtype`, with which the optimizer writes them")
        views = self._views("low")
        return Views({name: as_16_bit(view, self._options.copy_dtype) for name, view in views.items()})

    @property
    def masters(self) -> dict[Hashable, Any]:
        """Name -> the parameter as it is now in the dtype of the arithmetic, in a NumPy array of its own.

        With `master_weights` these are the exact float32 masters of bfloat16 parameters.
        """
        values = {plan: plan.buffers.values("p") for plan in self._plans}
        return {
            name: plan.buffers.segments[name].of(values[plan]).copy()
            for plan, row in self._rows
            for name in plan.groups[row]["params"]
        }

    def memory_usage(self) -> MemoryUsage:
        """How much memory each buffer takes, and what it would take in the dtype of the arithmetic."""
        return memory_usage(self.all_buffers)

    @property
    def buffers(self) -> Buffers:  # noqa: D102 (described in Adam)
        if len(self._plans) != 1:
            raise self._several_buffers()
        return self._plans[0].buffers

    def _several_buffers(self):
        return ValueError(
            f"`buffers` needs one set of flat buffers, got {len(self._plans)}: parameters of a later "
            "`add_param_group`, and each flat array of a group, have buffers of their own, listed in `all_buffers`"
        )

    @property
    def all_buffers(self) -> tuple[Buffers, ...]:
        """Every set of flat buffers: more than one after `add_param_group`, or with a flat array in a group."""
        return tuple(plan.buffers for plan in self._plans)

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients of the last step, scaled and not yet clipped; on a GPU this waits for the step.

        None before the first step, and if nothing asks for it: neither `max_grad_norm` nor `nonfinite`.
        """
        asked = any(plan.asked for plan in self._plans)
        return self._reduction.norm if self._reduction is not None and asked else None

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped for a gradient that was not finite; on a GPU this waits for the last step."""
        return 0 if self._reduction is None else self._reduction.skipped

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group in its next step, with schedules evaluated."""
        return [plan.lr(row) for plan, row in self._rows]

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a group, `{"params": ..., "lr": ..., ...}`, whose steps count from 1.

        `exclude_from_weight_decay` applies to it, so that it may become two groups.
        Its parameters get flat buffers of their own, so that no view of the earlier ones goes stale.

        Raises:
            TypeError, ValueError: as for the constructor; the optimizer is as before then.
        """
        if not isinstance(param_group, Mapping) or "params" not in param_group:
            raise TypeError(f"`param_group` must be a dict with the key 'params', got {type(param_group).__name__}")
        unnamed = sum(isinstance(name, int) for name in self.params)
        groups = [parse_group(param_group, "param_group['params']", unnamed)]
        self._add(exclude(groups, self._options.exclude_from_weight_decay, required=False))

    def step(self, grads: Any = None, *, grad_scale: float = 1.0) -> None:
        """Update parameters and moments in place.

        Args:
            grads: A mapping name -> array with an entry for every parameter, each of its parameter's shape, dtype and
                device (NumPy scalars for 0-d parameters); or one flat array like `buffers.g`; or None, for what has
                been written into `grads`. Gradients are only read, but for `grads` itself, which is also the place
                where small gradients of a mapping are gathered, and with `zero_grad`.
            grad_scale: Factor on the gradients, >= 0, in the same pass: the inverse of a loss scale, say.

        Raises:
            TypeError, ValueError: a gradient is missing, unknown, no array, or of another shape, dtype or device than
                its parameter; an entry of the mapping given as `params` has been replaced; or a schedule gives no
                learning rate. Nothing has been written then, and the optimizer can be used on.
            FloatingPointError: a gradient is not finite, with `nonfinite="raise"`. Parameters, moments and step counts
                are as before.
        """
        if type(grad_scale) is not float or not 0.0 <= grad_scale < inf:
            grad_scale = nonnegative(grad_scale, "grad_scale")
        try:
            for container, key, view in self._bindings:
                if container[key] is not view:
                    raise KeyError
        except (KeyError, IndexError):
            raise replaced_error(key) from None
        lrs = [(plan, plan.scheduled_lrs()) for plan in self._plans if plan.scheduled]
        for _, past in self._pasts:
            past.check_decays()
        located = self._located(grads)
        # All that can fail comes before the first launch: what is compiled, and what is allocated.
        launches = []
        for plan, gradients in zip(self._plans, located):  # noqa: B905 (strict takes a twentieth of a small step)
            sparse = gradients.sparse
            launches.append(sparse_launches(plan, sparse) if sparse else plan.launches(gradients.merged))
        scale: Any = grad_scale
        if self._reduction is not None:
            scale = self._reduction.clip(located, grad_scale)
            if self._is_refused(located):
                return
        for plan, rates in lrs:
            plan.use_lrs(rates)
        for position, past in self._pasts:
            past.before_step(located[position].sparse)
        for plan, gradients, of_plan in zip(self._plans, located, launches):  # noqa: B905 (likewise)
            # No method of the plan: one call more is a twentieth of a small step.
            for call, flats, blocks, rows in of_plan:
                call(flats, gradients.addresses, blocks, rows, plan.hyper, plan.carried, plan.table, scale)
            plan.asked += 1
        for position, past in self._pasts:
            past.after_step(located[position].sparse)
        if self._options.zero_grad:
            # Where the kernel read a gradient, it has zeroed it.
            _zero(array for gradients in located for array in gradients.copied)

    def _located(self, grads) -> list[Located]:
        if grads is None or grads is self._grads:
            if self._written is None:
                self._written = [gradients.written() for gradients in self._gradients]
            return self._written
        if not isinstance(grads, Mapping):
            if len(self._plans) != 1:
                raise self._several_buffers()
            return [self._gradients[0].flat(grads)]
        # Two rounds over the plans, so that all is checked before anything is written, and all gradients are read
        # as they were: some may lie in the optimizer's own memory.
        all_buffers, zeroed = self.all_buffers, self._options.zero_grad
        handed = [gradients.named(grads, all_buffers, zeroed=zeroed) for gradients in self._gradients]
        if len(grads) != len(self.params):
            unknown = [name for name in grads if name not in self.params]
            raise ValueError(f"`grads` must have an entry for every parameter and no other, got {unknown}")
        shared = sharing_memory(array for of_plan in handed for array in of_plan) if zeroed else set()
        pairs = zip(self._gradients, handed, strict=True)
        return [gradients.gather(of_plan, all_buffers, shared) for gradients, of_plan in pairs]

    def _is_refused(self, located) -> bool:
        """Whether this step is not taken, for a gradient that is not finite; raise if that is the policy."""
        policy, reduction = self._options.nonfinite, self._reduction
        assert reduction is not None
        on_device = not isinstance(self._plans[0].buffers.p, np.ndarray)
        # On a GPU the kernels themselves skip, without waiting for the host, unless that must keep a history.
        skipped_by_kernels = policy == "skip" and on_device and self._options.sparse == "lazy"
        if policy == "propagate" or skipped_by_kernels or reduction.taken:
            return False
        if policy == "raise":
            reduction.skipped -= 1
            pairs = zip(self._plans, located, strict=True)
            named = {n: a for plan, found in pairs for n, a in zip(plan.names, found.arrays, strict=True)}
            raise not_finite_error(named, reduction.norm)
        for plan in self._plans:
            plan.asked += 1
        if self._options.zero_grad:
            _zero(array for gradients in located for array in (*gradients.arrays, *gradients.copied))
            _zero(buffers.g for buffers in self.all_buffers if "g" in vars(buffers))
        return True

    def catch_up(self, name: Hashable = None, indices: Any = None) -> None:
        """With `sparse="exact"`, bring rows up to date that have missed steps for want of a gradient.

        Call it before those rows are read: before the forward pass, with the rows of the batch. A step does it for the
        rows of its gradients, and `state_dict` for all; up-to-date rows stay as they are. Without `sparse="exact"` no
        row is ever behind.

        Args:
            name: Of a parameter; None for all parameters.
            indices: Rows of the parameter, integers, shape (k,); None for all rows.

        Raises:
            TypeError, ValueError: an unknown name, rows that are no integers or out of range. Nothing has been written.
        """
        if name is not None and name not in self.params:
            raise ValueError(f"`name` must be a parameter's name, got {name!r}")
        for position, past in self._pasts:
            for index, own in enumerate(self._plans[position].names):
                if name in (None, own):
                    rows = None if indices is None else row_indices(indices, self.params[own], "indices")
                    past.catch_up(index, None if rows is None else np.unique(rows))
            if name is None and indices is None:
                past.forget()

    def zero_grad(self) -> None:
        """Fill `grads` with zeros, in place."""
        for buffers in self.all_buffers:
            buffers.g[...] = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state in torch's layout, as copies.

        `{"state": {name: {"step": int, "exp_avg": array, "exp_avg_sq": array}}, "param_groups": [dict, ...]}`; each
        array has the shape of its parameter and the dtype in which it is stored; a moment in "float8" is an array of
        codes, uint8, with "exp_avg_exponent" or "exp_avg_sq_exponent" beside it. Further entries, where the optimizer
        has them: "max_exp_avg_sq" (`amsgrad`), "mu_product" (NAdam), "ema" (`ema_decay`), "skipped" (steps that were
        skipped, `nonfinite`), "remainder" (`master_weights`), "seed" (stochastic rounding). Adamax has "exp_inf" in
        place of "exp_avg_sq". A schedule is in it as it is: to be pickled, it must be one that
        can be, as those of `fastadam.schedules`. The parameters are not part of it: save `params` too, after this call,
        which brings all rows up to date with `sparse="exact"`.
        """
        self.catch_up()
        return dump_state(self._rows)

    def load_state_dict(self, state_dict: Mapping[str, Any], *, convert: bool = False) -> None:
        """Take over a `state_dict()` of an optimizer with the same names, shapes and dtypes, by copying, in place.

        The run continues bit for bit as the saved one would have, with the parameters written first. A schedule goes
        on where the saved run was; where the state has a number, a schedule that this optimizer has stays. `copies` are
        made anew of the parameters; with `sparse="exact"`, every row is taken as up to date.

        Args:
            state_dict: What `state_dict()` made.
            convert: Round what is stored in another format than here, to nearest, instead of raising an error: moments
                in float32 to bfloat16 or to 8-bit codes, say, or back.

        Raises:
            TypeError, ValueError: names, groups, shapes, dtypes or values do not fit. Nothing has been written then.
        """
        load_state(self._rows, state_dict, convert=flag(convert, "convert"))
        for plan in self._plans:
            plan.refresh_copies()
        for _, past in self._pasts:
            past.forget()
        if self._reduction is not None:
            self._reduction.skipped = max(plan.calls(row) - plan.state(row)[0] for plan, row in self._rows)

    def __repr__(self) -> str:
        groups = "".join(f"\n  {dict(group)}" for group in self.param_groups)
        return f"{type(self).__name__}({groups}\n)"

    def __reduce__(self):
        raise TypeError(
            f"{type(self).__name__} must not be copied or pickled: a copy would be cut off from the parameters that it "
            "trains. Save `state_dict()` and `params`, and build the optimizer anew"
        )


def _zero(arrays):
    for array in arrays:
        if not isinstance(array, Rows):
            array[...] = 0.0
