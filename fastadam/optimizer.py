"""What all optimizer classes share on NumPy and CuPy arrays: parameters in, mappings out, each step to the engine."""

from collections.abc import Hashable, Mapping
from functools import partial
from itertools import count
from math import inf
from threading import RLock
from typing import Any
from weakref import ref

import numpy as np

from fastadam.containers import Watch, put_back, rebind, warn_of_copies, watches
from fastadam.memory.arrays import as_torch, assign, backend_of, dtype_name, is_of_torch, rebound, zeros
from fastadam.memory.buffers import Buffers, Views, as_16_bit
from fastadam.memory.formats import formats_of, warn_of_vanishing
from fastadam.memory.layout import plain
from fastadam.memory.parameters import Parameter, all_buffers, random_place
from fastadam.memory.provided import Provided
from fastadam.memory.usage import MemoryUsage, memory_usage
from fastadam.params import (
    Group,
    check_together,
    excluded_names,
    layout_in_place,
    layout_when_packed,
    parse_group,
    parse_groups,
)
from fastadam.resumable import Resumable
from fastadam.saved import Loading
from fastadam.settings import recipes
from fastadam.settings.checks import flag, unexpected
from fastadam.settings.groups import ParamGroup
from fastadam.settings.options import OPTION_NAMES, Options, moment_dtypes
from fastadam.sharding.agreement import agree, shared_failure
from fastadam.sharding.checks import check_entries, check_shared, shared
from fastadam.sharding.engine import ShardedEngine
from fastadam.sharding.exchange import Exchange
from fastadam.sharding.ranges import buckets
from fastadam.state import Loaded, dump_state, load_state, steps_not_taken
from fastadam.step.engine import Engine
from fastadam.step.gradients import Collector
from fastadam.step.rows import row_indices
from fastadam.step.said import ADDED, LOADED, SAID_KEYS, said_of_parameters, said_of_values
from fastadam.step.scale import scale_of


class Optimizer(Resumable):
    """A member of the Adam family; see `fastadam.Adam` for arguments, attributes and errors."""

    _members: dict[Hashable, int]
    _collector: Collector

    def __init__(self, params: Any, member: str, options: Mapping[str, Any], **defaults: Any):
        chosen = dict(options)
        held = {key: chosen.pop(key) for key in ("flat", "shard", "bucket_bytes", "memory") if key in chosen}
        group, self._bucket_bytes = shared(held)
        self._memory = Provided(held.get("memory"))
        self._flat = group is not None or flag(held.get("flat", False), "flat")
        unknown = sorted(chosen.keys() - OPTION_NAMES)
        if unknown:
            known = [*OPTION_NAMES, "flat", "memory", *defaults]
            raise unexpected(type(self).__name__, unknown[0], known)
        self._options = Options(member, **chosen)
        preset = self._options.preset
        presets = {
            "eps": preset.eps,
            "decoupled_weight_decay": preset.decoupled,
            **self._options.family_member.hyper_defaults(self._options.convention),
        }
        if group is not None:
            check_shared(self._options)
        self._group = group
        self._defaults = {key: presets.get(key) if value is None else value for key, value in defaults.items()}
        self._groups: list[ParamGroup] = []
        self._watches: list[Watch] = []
        self._seed = self._options.seed
        self._engine = None
        self._one_step = RLock()
        self._params = Views({})
        self._of_torch: set[Hashable] = set()
        self._add(parse_groups(params), required=True)

    def _add(self, groups: list[Group], *, required: bool) -> None:
        """Check everything, then allocate, then re-bind: an error leaves all as it was."""
        options, entries = self._options, [entry for entries, _ in groups for entry in entries]
        backend = backend_of(entries[0].array, entries[0].label)
        # An array that tells the device, and keeps no parameter alive.
        device_of = zeros(0, np.uint8, entries[0].array)
        exchange = self._exchange_of(device_of)
        with shared_failure(exchange, len(SAID_KEYS), ADDED):
            excluded, layouts, checked = self._checked(groups, entries, required)
        if exchange is not None:
            said = said_of_parameters(entries, [group for group, _ in checked], options, self._bucket_bytes)
            agree(exchange, ADDED, said)
        first = 0 if self._engine is None else len(self._parameters)
        parameters, bindings = self._placed(entries, layouts, [formats for _, formats in checked], first, device_of)
        if exchange is not None:
            agree(exchange, ADDED, said_of_values(parameters))
        engine = self._engine or self._new_engine(backend, device_of, exchange)
        members = iter(parameters)
        added = [([next(members) for _ in group["params"]], group, excluded) for group, _ in checked]
        before, plan_before = dict(vars(self)), engine.snapshot()
        replaced: list[tuple[Any, Hashable, Any]] = []
        try:
            rebind(bindings, replaced)
            engine.add(added)
            vars(self).update(self._with(engine, entries, [group for group, _ in checked], bindings))
            if bindings:
                warn_of_copies([entry for entry in entries if not entry.alone], replaced)
        except BaseException:  # there is no more memory, a warning is an error, or Ctrl-C comes
            put_back(replaced)
            engine.restore(plan_before)
            vars(self).clear()
            vars(self).update(before)
            raise

    def _checked(self, groups, entries, required):
        """The names without weight decay, the layout of each entry, and each group with the formats of its entries."""
        if self._group is not None:
            check_entries(entries)
        excluded = excluded_names(groups, self._options.exclude_from_weight_decay, required=required)
        existing = [] if self._engine is None else self._engine.plan.parameters
        occupied = [parameter.p for parameter in existing if parameter.p is not None]
        occupied += [flat for buffers in all_buffers(existing) for flat in buffers.flats.values()]
        check_together(entries, [each.name for each in existing], occupied)
        layouts = [plain(e.array.shape) if e.alone else self._layout(e) for e in entries]
        return excluded, layouts, [self._checked_group(entries, settings) for entries, settings in groups]

    def _exchange_of(self, device_of):
        """What ranks send one another; a single rank has nobody to send to."""
        if self._engine is not None:
            return self._engine.exchange
        return None if self._group is None or self._group.size == 1 else Exchange(self._group, device_of)

    def _new_engine(self, backend, device_of, exchange):
        if exchange is None:
            return Engine(self._options, backend, device_of)
        return ShardedEngine(self._options, backend, device_of, exchange)

    def _layout(self, entry):
        return layout_when_packed(entry) if self._flat else layout_in_place(entry)

    def _checked_group(self, entries, settings):
        """The group of `entries`, and the formats of each of them."""
        options = self._options
        dtypes = moment_dtypes(settings.get("moment_dtype", options.moment_dtype))
        formats = [formats_of(dtype_name(each.array), each.array.size, dtypes, options) for each in entries]
        together = partial(recipes.check_together, options=options, formats=list(dict.fromkeys(formats)))
        values = {**self._defaults, **settings}
        group = ParamGroup(tuple(entry.name for entry in entries), values, options.family_member, together)
        group.check({})
        warn_of_vanishing([entry.array for entry in entries], group, options)
        return group, formats

    def _placed(self, entries, layouts, formats, first, device_of):
        """The parameters, in memory; and what containers are to hold: (container, key, view)."""
        flat_formats = [each for of_group in formats for each in of_group]
        together: dict[Any, list[int]] = {}
        for index, (entry, each) in enumerate(zip(entries, flat_formats, strict=True)):
            arithmetic = each.arithmetic(entry.array)
            together.setdefault((index,) if entry.alone else (each, arithmetic), []).append(index)
        parameters: dict[int, Parameter] = {}
        numbers = count(0 if self._engine is None else len(self.all_buffers))
        bindings = []
        rank, ranks = (0, 1) if self._group is None else (self._group.rank, self._group.size)
        nbytes = [entry.array.nbytes for entry in entries]
        for members in (part for alike in together.values() for part in buckets(alike, nbytes, self._bucket_bytes)):
            entry, each = entries[members[0]], flat_formats[members[0]]
            named = {entries[index].name: layouts[index] for index in members}
            zeros_of = partial(self._memory.zeros, next(numbers))
            buffers = Buffers(named, each, each.arithmetic(entry.array), device_of, rank, ranks, zeros_of)
            if entry.alone:
                buffers.adopt(entry.array)
            for index in members:
                entry, layout = entries[index], layouts[index]
                place = random_place(self._seed, entry.name, first + index)
                packed = self._flat and not entry.alone
                own = None if packed or entry.alone else layout.flat(entry.array)
                parameters[index] = parameter = Parameter(entry.name, place, layout, own, buffers, packed)
                self._memory.parameters.add(parameter)
                if packed:
                    view = parameter.view("p")
                    assign(view, entry.array)
                    bindings.append((entry.container, entry.key, rebound(view, entry.original, entry.label)))
        return [parameters[index] for index in range(len(entries))], bindings

    def _with(self, engine, entries, groups, bindings):
        """The attributes with what has been added."""
        first, plan = len(self._groups), engine.plan
        for index, group in enumerate(groups, first):
            group.changed = partial(_refresh, ref(self), plan.graphs, index)
            group.lr_changed = partial(_set_lr, ref(self), plan.graphs, index)
        kept = bindings or [entry.watched or (entry.container, entry.key, entry.original) for entry in entries]
        added = {
            entry.name: parameter.view("p") if self._flat and not entry.alone else entry.array
            for entry, parameter in zip(entries, plan.parameters[-len(entries) :], strict=True)
        }
        of_torch = self._of_torch | {entry.name for entry in entries if is_of_torch(entry.original)}
        params = Views({**self._params.arrays, **added}, of_torch)
        lying = [params.arrays[each.name] for each in plan.parameters if not each.packed]
        arrays = lying or [next(iter(added.values()))]
        return {
            "_engine": engine,
            "_groups": [*self._groups, *groups],
            "_watches": [*self._watches, *watches(kept)],
            "_members": {parameter.name: member for member, parameter in enumerate(plan.parameters)},
            "_params": params,
            "_of_torch": of_torch,
            "_collector": Collector(
                plan.parameters, arrays, plan.backend, zeroed=self._options.zero_grad, of_torch=of_torch
            ),
        }

    @property
    def param_groups(self) -> tuple[ParamGroup, ...]:  # noqa: D102 (described in Adam)
        return tuple(self._groups)

    @property
    def params(self) -> Views:  # noqa: D102 (described in Adam)
        return self._params

    @property
    def grads(self) -> Views:  # noqa: D102 (described in Adam)
        return self._collector.views

    @property
    def ema(self) -> Views:
        """Name -> view of the exponential moving average of the parameter (with `ema_decay`).

        With `shard` every rank must ask for it, and gets copies with the elements of all ranks, in new memory.
        """
        if self._options.ema_decay is None:
            raise AttributeError("`ema` needs `ema_decay`, with which the optimizer keeps the average")
        self._settled()
        return Views({parameter.name: view for parameter, _, view in self._whole(["ema"])}, self._of_torch)

    def restart_ema(self) -> None:
        """Let the average of each parameter be the parameter as it is now: after weights were loaded, say.

        With `ema_warmup`, steps count on.

        Raises:
            AttributeError: there is no average.

        Example:
            >>> import numpy as np, fastadam
            >>> opt = fastadam.Adam({"w": np.zeros(2)}, ema_decay=0.9)
            >>> opt.params["w"][...] = 5.0
            >>> opt.restart_ema()
            >>> opt.ema["w"]
            array([5., 5.])
        """
        with self._one_step:
            if self._options.ema_decay is None:
                raise AttributeError("`restart_ema` needs `ema_decay`, with which the optimizer keeps an average")
            self._settled().journal.run(None, self._start_averages)

    def _start_averages(self):
        for parameter in self._parameters:
            parameter.start_average()

    @property
    def copies(self) -> Views:
        """Name -> view of the 16-bit copy of the parameter (with `copy_dtype`), as of the last step."""
        dtype = self._options.copy_dtype
        self._settled()
        if dtype is None:
            raise AttributeError("`copies` needs `copy_dtype`, with which the optimizer writes them")
        copies = {parameter.name: as_16_bit(parameter.view("copy"), dtype) for parameter in self._parameters}
        return Views(copies, self._of_torch)

    @property
    def masters(self) -> dict[Hashable, Any]:
        """Name -> the parameter as it is now in the dtype of the arithmetic, in a NumPy array or tensor of its own.

        With `master_weights` these are the exact float32 masters of bfloat16 parameters; with `shard` every rank must
        ask for them.
        """
        self._settled()
        found: dict[Hashable, dict[str, Any]] = {}
        for parameter, flat, view in self._whole(["p", "remainder"]):
            found.setdefault(parameter.name, {})[flat] = view
        return dict(
            Views({each.name: each.values("p", found[each.name]).copy() for each in self._parameters}, self._of_torch)
        )

    def _whole(self, flats):
        """(parameter, flat, view) of those of `flats` that parameters have, with the elements of all ranks."""
        assert self._engine is not None
        held = [(each, flat) for each in self._parameters for flat in flats]
        return self._engine.whole(
            [(each, flat) for each, flat in held if flat != "remainder" or flat in each.formats.flats("p")]
        )

    def memory_usage(self) -> MemoryUsage:
        """How much memory each buffer takes, and what it would take in the dtype of the arithmetic."""
        return memory_usage(self._parameters)

    @property
    def buffers(self) -> Buffers:  # noqa: D102 (described in Adam)
        found = self.all_buffers
        if len(found) != 1:
            raise ValueError(
                f"`buffers` needs one set of flat buffers, got {len(found)}: parameters of a later `add_param_group`, "
                "each flat array of a group, and parameters that are stored otherwise have buffers of their own, "
                "listed in `all_buffers`"
            )
        return found[0]

    @property
    def all_buffers(self) -> tuple[Buffers, ...]:
        """Every set of flat buffers: one for all parameters that were added together and are stored alike."""
        return all_buffers(self._parameters)

    @property
    def _parameters(self) -> list[Parameter]:
        assert self._engine is not None
        return self._engine.plan.parameters

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients of the last step, scaled and not yet clipped; on a GPU this waits for the step.

        None before the first step, and if nothing asks for it: no limit of a norm, and no policy of `nonfinite`.
        """
        engine = self._settled()
        return engine.reduction.norm if engine.reduction is not None and engine.plan.asked else None

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped for a gradient that was not finite; on a GPU this waits for the last step."""
        reduction = self._settled().reduction
        return 0 if reduction is None else reduction.skipped

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group in its next step, with schedules evaluated."""
        plan = self._settled().plan
        return [plan.lr(index) for index in range(len(self._groups))]

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a group, `{"params": ..., "lr": ..., ...}`, whose steps count from 1.

        `exclude_from_weight_decay` applies to it. What is kept of its parameters gets flat buffers of its own, so that
        no view of the earlier ones goes stale.

        Raises:
            TypeError, ValueError: as for the constructor; the optimizer is as before then.
        """
        if not isinstance(param_group, Mapping) or "params" not in param_group:
            raise TypeError(f"`param_group` must be a dict with the key 'params', got {type(param_group).__name__}")
        unnamed = sum(isinstance(name, int) for name in self.params)
        with self._one_step:
            self._settled()
            self._add([parse_group(param_group, "param_group['params']", unnamed)], required=False)

    def step(self, grads: Any = None, *, grad_scale: Any = 1.0) -> None:
        """Update parameters and moments in place.

        Args:
            grads: A mapping name -> array with an entry for every parameter, or a list of arrays in the order of the
                parameters; each of its parameter's shape, dtype and device (NumPy scalars for 0-d parameters). A
                parameter whose entry is None is not stepped, and its bias corrections stand still, as in torch. Or one
                flat array that is cut as `buffers.g` is; or None, for what has been written into `grads`. Gradients
                are only read, with two exceptions: `zero_grad` zeroes them, and small ones may first be copied into
                `opt.grads`.
            grad_scale: Factor on the gradients, >= 0, in the same pass: the inverse of a loss scale, say. On a GPU it
                may be an array of one float32 there, which is read by the device in each step, and in each replay of a
                captured one; nobody checks it.

        Raises:
            TypeError, ValueError: a gradient is missing, unknown, no array, of another shape, dtype or device than its
                parameter, or inside of a parameter; an array in the container given as `params` has been replaced; or
                a schedule gives no learning rate. Nothing has been written then, and the optimizer can be used on.
            FloatingPointError: a gradient is not finite, with `nonfinite="raise"`. Parameters, moments and step counts
                are as before.
            DisagreementError: with `shard`, another rank has other settings, steps or parameters with a gradient, or
                its gradients were refused. Nothing has been written on any rank.
            CollectiveError: with `shard`, a collective has failed. Parameters may differ between ranks.
        """
        engine = self._engine
        assert engine is not None
        # Another thread's step would put the addresses of its gradients into the table of this one's launch.
        with self._one_step:
            try:
                if engine.journal.begun is not None:
                    engine.journal.settle()
                scale = None
                if type(grad_scale) is not float or not 0.0 <= grad_scale < inf:
                    grad_scale, scale = scale_of(grad_scale, self._params)
                for watch in self._watches:
                    watch.check()
                rates = engine.rates()
                gradients = self._collector.collect(grads, lambda: self.buffers)
            except Exception:
                with engine.told():  # not around all of it, which would take a small step 0.5 us
                    raise
            if scale is not engine.scale:
                engine.read_scale(scale)
            engine.take_step(gradients, rates, grad_scale)

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
        members = range(len(self._parameters)) if name is None else [self._members[name]]
        checked = [
            None if indices is None else np.unique(row_indices(indices, _rows(self._parameters[member]), "indices"))
            for member in members
        ]
        with self._one_step:
            engine = self._settled()
            if indices is None:
                engine.catch_up(members)
            else:
                for member, rows in zip(members, checked, strict=True):
                    engine.catch_up([member], rows)

    def zero_grad(self) -> None:
        """Fill `grads` with zeros, in place."""
        for buffers in self.all_buffers:
            if "g" in buffers.flats:  # it is made of zeros
                assign(buffers.flats["g"], 0.0)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state in torch's layout, as copies.

        `{"state": {name: {"step": int, "exp_avg": array, "exp_avg_sq": array}}, "param_groups": [dict, ...]}`; each
        array has the shape of its parameter and the dtype in which it is stored; a moment in "float8" is an array of
        codes, uint8, with "exp_avg_exponent" or "exp_avg_sq_exponent" beside it, and with "layout" where a parameter
        does not lie in C order. Further entries, where the optimizer has them: "max_exp_avg_sq" (`amsgrad`),
        "mu_product" (NAdam), "exp_avg_slow" (AdEMAMix), "ema" (`ema_decay`), "skipped" (steps that were asked for and
        not taken), "remainder" (`master_weights`), "words" and "words_seed" (stochastic rounding). Adamax has "exp_inf"
        in place of "exp_avg_sq", Lion neither. Arrays of torch parameters are tensors, so that `torch.save` and
        `torch.load` take the state as they are. A schedule is not part of it, its position is: "lr" is the learning
        rate of the next step, left out if the schedule gives none. The parameters are not part of it: save `params`
        too, after this call, which brings all rows up to date with `sparse="exact"`; or `save` all of it. With `shard`
        every rank must call it, and gets all of the state, as one process would have it.
        """
        taken: list[tuple[Parameter, str, str]] = []
        with self._one_step:
            self.catch_up()
            engine = self._settled()
            state = dump_state(engine.plan, self._groups, self._seed, lambda *each: taken.append(each))
            keys = {(parameter, flat): key for parameter, key, flat in taken}
            for parameter, flat, view in engine.whole(list(keys)):
                key, copy = keys[parameter, flat], view.copy()
                bits = key == "remainder"
                state["state"][parameter.name][key] = (
                    as_torch(copy, bits=bits) if parameter.name in self._of_torch else copy
                )
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], *, convert: bool = False, strict: bool = True) -> Loaded:
        """Take over a `state_dict()` of an optimizer with the same names, shapes and dtypes, by copying, in place.

        The run continues bit for bit as the saved one would have, with the parameters written first. Parameters may be
        grouped otherwise than in the saved run, and packed or not. A schedule that this optimizer has stays, and goes
        on where the saved run was. `copies` are made anew of the parameters; with `sparse="exact"`, every row is taken
        as up to date.

        States of torch's own Adam optimizers are taken too: by the names that torch was given, or in the order of the
        parameters. What torch has never stepped begins afresh.

        Args:
            state_dict: What `state_dict()` made.
            convert: Round what is stored in another format than here, to nearest, instead of raising an error: moments
                in float32 to bfloat16 or to 8-bit codes, say, or back. Also takes states with stochastic rounding of
                fastadam 0.1, which go on with other random numbers.
            strict: False takes partial states. A parameter that has no entry, or one of another shape, begins afresh:
                no steps, moments of zero, its group's settings as they are. So does what was switched on meanwhile:
                `ema_decay`, `amsgrad` (which stays as it is here), `master_weights`. Everything else is left out.

        Returns:
            What was taken, what began afresh and what was left out.

        Raises:
            TypeError, ValueError: names, shapes, dtypes or values do not fit. Nothing has been written then.
        """
        how = Loading(convert=flag(convert, "convert"), strict=flag(strict, "strict"))
        assert self._engine is not None
        with self._one_step, shared_failure(self._engine.exchange, 0, LOADED):
            return self._load(state_dict, how)

    def _load(self, state_dict, how):
        engine = self._engine
        assert engine is not None
        if not how.strict:
            self._settled()  # what the state lacks would stay torn
        exchange = engine.exchange
        if exchange is not None:
            how = how._replace(ready=lambda: agree(exchange, LOADED, {}))
        loaded, write = load_state(engine.plan, self._groups, state_dict, how)
        engine.journal.run(None, self._take_over, loaded.seed, write)
        return loaded

    def _take_over(self, seed, write):
        engine = self._engine
        assert engine is not None
        plan = engine.plan
        write()
        if seed is not None and seed != self._seed:
            plan.place_random_words([random_place(seed, each.name, at) for at, each in enumerate(plan.parameters)])
            self._seed = seed
        engine.loaded()
        if engine.reduction is not None:
            engine.reduction.skipped = steps_not_taken(plan, self._groups)

    def _settled(self):
        """The engine, when what was interrupted has come to its end."""
        engine = self._engine
        assert engine is not None
        if engine.journal.begun is not None:
            with self._one_step:
                engine.journal.settle()
        return engine

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not callable(getattr(type(self), name, None)):
            if name in OPTION_NAMES:
                raise AttributeError(f"`{name}` is chosen when an optimizer is made, and cannot be assigned")
            if isinstance(getattr(type(self), name, None), property):
                raise AttributeError(f"`{name}` cannot be assigned")
            group = self._groups[0]
            setting = name if name in group and name != "params" else group.resembled(name)
            where = f": assign `param_groups[...][{setting!r}]`" if setting else ""
            raise AttributeError(f"`{name}` is no attribute that can be assigned{where}")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        groups = "".join(f"\n  {dict(group)}" for group in self.param_groups)
        return f"{type(self).__name__}({groups}\n)"

    def __reduce__(self):
        raise TypeError(
            f"{type(self).__name__} must not be copied or pickled: a copy would be cut off from the parameters that it "
            "trains. Save `state_dict()` and `params`, and build the optimizer anew"
        )


def _refresh(optimizer, graphs, index):
    plan = _plan_of(optimizer, graphs)
    if plan is not None:
        plan.refresh(index)


def _set_lr(optimizer, graphs, index, lr):
    plan = _plan_of(optimizer, graphs)
    if plan is not None:
        plan.set_lr(index, lr)


def _plan_of(optimizer, graphs):
    """The plan of the optimizer of a group; None if that is gone, and the group has nothing to tell it.

    Raises:
        RuntimeError: a step was captured in a CUDA graph, and what replays would write to is gone.
        ValueError: a step was captured, and since then a parameter has been replaced.
    """
    held = optimizer()
    if held is None:
        if graphs.steps:
            raise RuntimeError(
                "the optimizer must live as long as a CUDA graph with its step is replayed, and it is gone: replays "
                "would write into memory that was freed. Keep it beside the graph, and capture the step anew"
            )
        return None
    if graphs.steps:
        for watch in held._watches:
            watch.check()
    return held._engine.plan


def _rows(parameter):
    return parameter.shape[0] if parameter.shape else 0
