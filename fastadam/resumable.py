"""Checkpoints of an optimizer: what all classes of optimizers share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from threading import RLock
from typing import Any

from fastadam.saved import Loading
from fastadam.settings.checks import flag, integer
from fastadam.settings.groups import ParamGroup
from fastadam.settings.options import Options
from fastadam.sharding.agreement import shared_failure
from fastadam.sharding.groups import Group
from fastadam.state import Loaded, dump_state
from fastadam.step.engine import Engine
from fastadam.step.said import LOADED


class Resumable(ABC):
    """An optimizer that saves its run to a file, and goes on from one."""

    _engine: Engine | None
    _groups: list[ParamGroup]
    _options: Options
    _seed: int
    _group: Group | None
    _one_step: RLock

    @abstractmethod
    def catch_up(self) -> None:
        """Bring all rows up to date."""

    @abstractmethod
    def _load(self, state_dict: Mapping[str, Any], how: Loading) -> Loaded:
        """Load a state dictionary."""

    def save(self, path: str | PathLike[str], *, params: bool = True, keep: int = 1, per_rank: bool = False) -> None:
        """Save parameters and all state in one safetensors file, which replaces `path` as a whole.

        Whenever the process is killed, `path` is the earlier file or the new one. Nothing is written in place but what
        `catch_up` writes. The file takes no second copy of the state in memory. See docs/checkpoints.md.

        Args:
            path: The file; its directory must exist.
            params: Save the parameters too. Without them, save them yourself after this call.
            keep: How many files to keep, the new one included, >= 1: "run.safetensors", before that
                "run.1.safetensors", and so on.
            per_rank: With `shard`, every rank writes its share to a file of its own beside `path`, whose name ends with
                its number, and `path`, written last, says what is where. Without, rank 0 writes all into one file.

        With `shard` every rank makes the same call, with a path on a file system that all of them see.

        Raises:
            OSError: the file cannot be written: no space, no permission, a directory in the way. `path` is as before.
            TypeError: a name of a parameter, or a key of a group that is not of fastadam, cannot be written as JSON.
            ValueError: `per_rank` without `shard`.
            DisagreementError: with `shard`, another rank could not write. `path` is as before.

        Example:
            >>> import os, tempfile, numpy as np, fastadam
            >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
            >>> opt = fastadam.Adam({"w": np.ones(3)}, lr=0.1)
            >>> opt.step({"w": np.ones(3)})
            >>> opt.save(path)
            >>> resumed = fastadam.Adam({"w": np.zeros(3)}, lr=0.1)
            >>> resumed.load(path).taken
            ('w', 'w.exp_avg', 'w.exp_avg_sq')
            >>> resumed.params["w"]
            array([0.9, 0.9, 0.9])
        """
        # Not before they are needed: `import fastadam` stays quick.
        from fastadam.checkpoints.manifest import options_of
        from fastadam.checkpoints.saving import Contents, save
        from fastadam.checkpoints.shares import Share, save_parts, save_together, view_of

        params, keep = flag(params, "params"), integer(keep, "keep", least=1)
        if flag(per_rank, "per_rank") and self._group is None:
            raise ValueError("`per_rank` must be False without `shard`, got True")
        assert self._engine is not None
        exchange = self._engine.exchange
        take = view_of if exchange is None else Share
        with self._one_step:
            self.catch_up()  # it finishes what was interrupted, or says that it cannot
            state = dump_state(self._engine.plan, self._groups, self._seed, take, params=params)
            schedules = {str(i): repr(group["lr"]) for i, group in enumerate(self._groups) if callable(group["lr"])}
            options = options_of(self._options, self._seed)
            contents = Contents(type(self).__name__, options, schedules, state)
            if exchange is None:
                save(Path(path), contents, keep)
            else:
                (save_parts if per_rank else save_together)(exchange, Path(path), contents, keep)

    def load(
        self, path: str | PathLike[str], *, params: bool = True, convert: bool = False, strict: bool = True
    ) -> Loaded:
        """Take over what `save` has written, by copying into parameters and buffers, in place.

        The run continues bit for bit as the saved one would have. Parameters may be packed or not, in another order and
        in other groups than in the saved run. The file is mapped into memory and checked as a whole, checksums
        included, before anything is written; nothing in it is ever unpickled.

        Args:
            path: The file.
            params: Load the parameters too.
            convert: As for `load_state_dict`; parameters are converted too.
            strict: As for `load_state_dict`. False also takes the state of another member or convention.

        Returns:
            What was taken, what began afresh, what was left out, and which options are others than in the saved run.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file is damaged, or no checkpoint (`fastadam.checkpoints.CheckpointError`).
            TypeError, ValueError: names, shapes, dtypes or values do not fit. Nothing has been written in either case.
        """
        from fastadam.checkpoints.manifest import options_of
        from fastadam.checkpoints.resuming import load

        how = Loading(str(path), flag(convert, "convert"), flag(strict, "strict"), flag(params, "params"))
        assert self._engine is not None
        with self._one_step:
            options, exchange = options_of(self._options, self._seed), self._engine.exchange
            with shared_failure(exchange, 0, LOADED):
                return load(Path(path), self._engine.plan, self._groups, options, how, self._load, exchange)
