"""Checkpoints of sharded optimizers: saved on so many ranks and loaded on others, and ranks that fail or are killed."""

import os
import re
import signal
import time

import engines
import numpy as np
import pytest
from engines import needs_gloo
from ranks import errors_on_ranks, on_ranks
from sharded_training import CASES, optimizer, result, take_steps
from test_sharding import assert_same, expected

from fastadam.checkpoints import CheckpointError
from fastadam.checkpoints import shares as shares_module
from fastadam.sharding import DisagreementError

SIZES = [(None, 3), (1, 2), (2, 1), (3, 2), (2, 5), (4, None)]


def trained(group, case, ranks, steps=range(2), path=None, save=None):
    """An optimizer that goes on from `path`, takes steps, and is saved."""
    opt = optimizer(group, **CASES[case])
    if path is not None:
        opt.load(path)
    take_steps(opt, steps, None if group is None else group.rank, ranks, **CASES[case])
    if save is not None:
        opt.save(save[0], **save[1])
    return opt


def on(size, act):
    return [act(None)] if size is None else on_ranks(size, act)


# The gradients of a test are always those of the first two ranks: of one process, or spread over the ranks.
def spread(opt, group, steps, case):
    from sharded_training import SHAPES, summed

    options = CASES[case]
    dtype = options.get("grad_dtype", options.get("dtype", np.float32))
    for step in steps:
        found = summed(step, 2, np.dtype(dtype))
        if group is not None and group.rank:
            found = {name: None if found[name] is None else np.zeros_like(found[name]) for name in SHAPES}
        opt.step(found, grad_scale=0.5)


@pytest.mark.parametrize("per_rank", [False, True], ids=["one file", "a file for each rank"])
@pytest.mark.parametrize(("before", "after"), SIZES)
@pytest.mark.parametrize("case", ["float32", "masters", "8-bit of bfloat16", "buckets with a norm"])
def test_saved_on_some_ranks_and_loaded_on_others(case, before, after, per_rank, tmp_path):
    path = tmp_path / "run.safetensors"

    def first(group):
        opt = optimizer(group, **CASES[case])
        spread(opt, group, range(2), case)
        opt.save(path, **({"per_rank": per_rank} if group is not None else {}))

    def second(group):
        opt = optimizer(group, **CASES[case])
        opt.params["weights"][...] = 0.0
        opt.load(path)
        spread(opt, group, range(2, 4), case)
        return result(opt)

    on(before, first)
    names = sorted(os.listdir(tmp_path))
    split = per_rank and before not in (None, 1)
    assert len(names) == (1 + before if split else 1)
    for found in on(after, second):
        wanted = expected(case, 2)
        assert_same({**found, "skipped": wanted["skipped"]}, wanted)


@pytest.mark.parametrize("case", ["average", "8-bit"])
def test_state_dict_has_all_of_the_state_on_every_rank(case):
    def state(group):
        return trained(group, case, 2).state_dict()

    alone = state(None)
    for found in on_ranks(2, state):
        assert found["param_groups"] == alone["param_groups"]
        for name, entry in alone["state"].items():
            assert found["state"][name].keys() == entry.keys()
            for key, value in entry.items():
                np.testing.assert_array_equal(found["state"][name][key], value, f"{name}.{key}")

    def resumed(group):
        opt = optimizer(group, **CASES[case])
        before = trained(group, case, 2)
        opt.load_state_dict(alone)
        for name, value in before.params.items():
            opt.params[name] = value
        take_steps(opt, range(2, 4), group.rank, 2, **CASES[case])
        return result(opt)

    for found in on_ranks(2, resumed):
        assert_same(found, expected(case, 2))


@pytest.mark.parametrize("per_rank", [False, True])
def test_earlier_checkpoints_are_kept_with_their_files(per_rank, tmp_path):
    path = tmp_path / "run.safetensors"

    def act(group):
        opt = optimizer(group)
        for step in range(4):
            take_steps(opt, [step], group.rank, 2)
            opt.save(path, keep=2, per_rank=per_rank)
        found = []
        for file in (path, tmp_path / "run.1.safetensors"):
            opt.load(file)
            found.append(opt.state_dict()["state"]["weights"]["step"])
        return found

    assert on_ranks(2, act) == [[4, 3]] * 2
    assert len(os.listdir(tmp_path)) == (6 if per_rank else 2)


@pytest.mark.parametrize("per_rank", [False, True])
@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_cannot_write_leaves_the_earlier_checkpoint(per_rank, failing, tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    write = shares_module.save
    broken = []

    def act(group):
        opt = trained(group, "float32", 2, save=(path, {"per_rank": per_rank}))
        before = sorted(os.listdir(tmp_path))
        group.wire.barrier.wait()
        if group.rank == failing:
            broken.append(True)
        group.wire.barrier.wait()
        with pytest.raises((OSError, DisagreementError), match="no space left") as error:
            opt.save(path, per_rank=per_rank)
        group.wire.barrier.wait()
        assert sorted(os.listdir(tmp_path)) == before
        broken.clear()
        take_steps(opt, [2, 3], group.rank, 2)
        assert_same(result(opt), expected("float32", 2))
        return type(error.value)

    def save(path, *arguments, **keywords):
        mine = f"-{failing}-of-" in path.name if per_rank else True
        if broken and mine:
            raise OSError("no space left")
        return write(path, *arguments, **keywords)

    monkeypatch.setattr(shares_module, "save", save)
    if not per_rank and failing == 1:
        pytest.skip("rank 0 alone writes one file")
    kinds = on_ranks(2, act)
    assert kinds == [OSError if rank == failing else DisagreementError for rank in range(2)]


@pytest.mark.parametrize("what", ["damaged", "missing", "of another save"])
def test_a_file_of_a_rank_that_cannot_be_believed_is_refused_by_all(what, tmp_path):
    path, other = tmp_path / "run.safetensors", tmp_path / "other.safetensors"

    def build(group):
        trained(group, "float32", 3, save=(path, {"per_rank": True}))
        trained(group, "float32", 3, range(3), save=(other, {"per_rank": True}))

    on_ranks(3, build)
    (part,) = tmp_path.glob("run.*-1-of-3.safetensors")
    (stranger,) = tmp_path.glob("other.*-1-of-3.safetensors")
    if what == "damaged":
        content = bytearray(part.read_bytes())
        content[-9] ^= 1
        part.write_bytes(content)
    elif what == "missing":
        part.unlink()
    else:
        part.write_bytes(stranger.read_bytes())

    def act(group):
        opt = optimizer(group)
        before = result(opt)
        try:
            opt.load(path)
        finally:
            assert_same(result(opt), before)

    errors = [*errors_on_ranks(2, act), *errors_on_ranks(1, act)]
    kinds = (OSError, DisagreementError) if what == "missing" else (CheckpointError, DisagreementError)
    for error in errors:
        assert isinstance(error, kinds), error
        assert part.name in str(error)


def test_per_rank_needs_a_group(tmp_path):
    with pytest.raises(ValueError, match="`per_rank` must be False without `shard`, got True"):
        optimizer(None).save(tmp_path / "run.safetensors", per_rank=True)


def test_ranks_that_save_to_other_files_are_told(tmp_path):
    def act(group):
        optimizer(group).save(tmp_path / f"{group.rank}.safetensors")

    for error in errors_on_ranks(2, act):
        assert isinstance(error, DisagreementError)
        assert re.search(r"same file before a checkpoint is saved, got .*1.safetensors on rank 1 and", str(error))
    assert not os.listdir(tmp_path)


def ready(processes, folder, size):
    """Wait until all ranks have a checkpoint and go on saving."""
    limit = time.monotonic() + 120
    while len(list(folder.glob("ready-*"))) < size:
        assert time.monotonic() < limit
        assert all(process.poll() is None for process in processes), [p.communicate()[0] for p in processes]
        time.sleep(0.01)


@needs_gloo
@pytest.mark.xdist_group("engines")
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("per_rank", [False, True], ids=["one file", "a file for each rank"])
def test_a_rank_that_is_killed_while_saving_leaves_a_checkpoint(per_rank, killed, tmp_path):
    for attempt, delay in enumerate((0.0, 0.013)):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        processes = engines.gloo_ranks(2, "sharded_saves.py", folder, per_rank)
        ready(processes, folder, 2)
        time.sleep(delay)
        os.kill(processes[killed].pid, signal.SIGKILL)
        found = engines.outputs(processes, 120)
        status, text = found[1 - killed]
        assert status == 1
        assert "CollectiveError: `all_gather` of " in text or "CollectiveError: `reduce_scatter` of " in text, text[
            -2_000:
        ]

        def act(group, folder=folder):
            opt = optimizer(group)
            opt.load(folder / "run.safetensors")
            step = opt.state_dict()["state"]["weights"]["step"]
            take_steps(opt, range(step, step + 1), group.rank, 2)
            return step, result(opt)

        for step, resumed in on_ranks(2, act):
            alone = optimizer(None)
            take_steps(alone, range(step + 1), None, 2)
            assert_same(resumed, result(alone))


@needs_gloo
@pytest.mark.xdist_group("engines")
def test_a_rank_that_hangs_is_an_error_that_names_the_collective(tmp_path):
    processes = engines.gloo_ranks(2, "sharded_hang.py", tmp_path)
    found = engines.outputs(processes, 120)
    assert found[1][0] == 0
    assert "CollectiveError: `all_gather` of what ranks compare before a step failed on rank 0 of 2: " in found[0][1]
