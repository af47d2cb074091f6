"""Checkpoints: a run that is saved, loaded and resumed is the same run to the last bit."""

import json
from pathlib import Path

import numpy as np
import pytest
from checkpointing import (
    HALVING,
    MEMBERS,
    SHAPES,
    STORAGES,
    arrays,
    everything,
    gradients,
    header_of,
    kept,
    make,
    train,
)
from ml_dtypes import bfloat16
from safetensors import safe_open
from safetensors.numpy import load_file

import fastadam
from fastadam.checkpoints.names import encoded

storages = pytest.mark.parametrize(("dtype", "options"), STORAGES.values(), ids=STORAGES)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


def resumes(run, other, path, more=range(10, 13), **options):
    """`other` loads what `run` has saved, and both go on alike."""
    run.save(path)
    other.load(path, **options)
    assert kept(other) == kept(run)
    for opt in (run, other):
        train(opt, more)
    assert kept(other) == kept(run)


# --- bit for bit


@storages
@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)], ids=["to flat", "from flat"])
def test_every_storage_format_is_resumed_bit_for_bit(dtype, options, before, after, path):
    run, other = (
        make(seed=seed, dtype=dtype, flat=flat, eps=1e-3, **options) for seed, flat in ((1, before), (2, after))
    )
    train(run, range(4), lambda step: ("b", "w.exp_avg") if step == 2 else ())
    resumes(run, other, path)


@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_is_resumed_bit_for_bit(member, path):
    run, other = (make(member, seed, lr=HALVING, nonfinite="skip", max_grad_norm=1.0) for seed in (1, 2))
    train(run, range(4), lambda step: ("w", 0) if step % 2 else ())
    run.step({**gradients(run, 5), "b": np.float32(np.nan)})
    resumes(run, other, path, range(6, 12))
    assert (other.skipped_steps, other.get_last_lr()) == (run.skipped_steps, run.get_last_lr()) == (1, [HALVING(11)])


def test_exact_rows_are_resumed_bit_for_bit(path):
    def built(seed):
        table = np.random.default_rng(seed).standard_normal((50, 4)).astype(np.float32)
        return fastadam.AdamW({"table": table}, lr=0.01, sparse="exact")

    def rows(seed):
        rng = np.random.default_rng(seed)
        indices = rng.choice(50, 5, replace=False)
        return {"table": fastadam.SparseRows(indices, rng.standard_normal((5, 4)).astype(np.float32))}

    run, other = built(1), built(2)
    for seed in range(6):
        run.step(rows(seed))
    run.save(path)
    other.load(path)
    assert kept(other) == kept(run)
    for seed in range(6, 12):
        for opt in (run, other):
            opt.step(rows(seed))
    assert kept(other) == kept(run)


def test_seeds_of_stochastic_rounding_are_taken_over(path):
    run = fastadam.AdamW(arrays(1, bfloat16), lr=0.01, seed=77)
    other = fastadam.AdamW(arrays(2, bfloat16), lr=0.01)
    train(run, range(3))
    resumes(run, other, path)


@pytest.mark.parametrize(("order", "other_order"), ["CF", "FC", "FF"])
def test_any_order_of_memory_is_resumed(order, other_order, path):
    shapes = {"w": (9, 1000), "k": (3, 2, 1000)}
    run, other = (fastadam.Adam(arrays(seed, shapes=shapes, order=o)) for seed, o in ((1, order), (2, other_order)))
    train(run, range(2))
    run.save(path)
    other.load(path)
    for opt in (run, other):
        train(opt, range(2, 4))
    for name, entry in run.state_dict()["state"].items():
        for key in ("exp_avg", "exp_avg_sq"):
            np.testing.assert_array_equal(other.state_dict()["state"][name][key], entry[key])
        np.testing.assert_array_equal(other.params[name], run.params[name])


def test_an_array_larger_than_a_piece_in_fortran_order(path):
    run = fastadam.Adam({"w": np.asfortranarray(arrays(1, shapes={"w": (3, 700, 300)})["w"])})
    train(run, range(1))
    run.save(path)
    np.testing.assert_array_equal(load_file(path)["w"], run.params["w"])
    np.testing.assert_array_equal(load_file(path)["w.exp_avg"], run.state_dict()["state"]["w"]["exp_avg"])


def test_codes_in_another_order_of_memory_need_convert(path):
    shapes = {"w": (80, 90)}
    run, other = (
        fastadam.Adam(arrays(seed, shapes=shapes, order=order), moment_dtype="float8")
        for seed, order in ((1, "F"), (2, "C"))
    )
    train(run, range(2))
    run.save(path)
    before = everything(other)
    with pytest.raises(ValueError, match=r"run.safetensors\['state'\]\['w'\]\['layout'\]` must be"):
        other.load(path)
    assert everything(other) == before
    other.load(path, convert=True)
    again = fastadam.Adam(arrays(3, shapes=shapes, order="F"), moment_dtype="float8")
    again.load(path)
    assert kept(again) == kept(run)


GROUPS = {
    "in another order": [["none", 0, "b", "w.exp_avg", "w", "0"]],
    "two": [["w", 0, "0"], ["b", "none", "w.exp_avg"]],
    "each": [[name] for name in SHAPES],
}


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("flat", [False, True], ids=["where they lie", "flat"])
def test_parameters_may_be_grouped_and_ordered_otherwise(groups, flat, path):
    run, others = make(dtype=bfloat16, moment_dtype="float8"), arrays(5, bfloat16)
    specified = [{"params": {name: others.pop(name) for name in names}} for names in groups]
    other = fastadam.AdamW(specified, lr=0.5, moment_dtype="float8", flat=flat)
    train(run, range(3))
    resumes(run, other, path)
    assert [group["lr"] for group in other.param_groups] == [0.01] * len(groups)


def test_settings_of_groups_are_taken_over(path):
    def built(seed, **settings):
        values = arrays(seed)
        first = {name: values.pop(name) for name in ("w", "b")}
        return fastadam.NAdam([{"params": first, **settings}, {"params": values}], momentum_decay=float("inf"))

    run = built(1, lr=0.25, betas=(0.5, 0.75), weight_decay=0.125, label="head", initial_lr=np.float32(0.5))
    train(run, range(2))
    other = built(2, momentum_decay=0.0)
    run.save(path)
    other.load(path)
    assert everything(other) == everything(run)
    assert (other.param_groups[0]["label"], other.param_groups[0]["initial_lr"]) == ("head", 0.5)


# --- the file


def test_the_package_and_every_other_reader_find_arrays_by_name(path):
    run = make(ema_decay=0.5, moment_dtype="bfloat16")
    train(run, range(2))
    run.save(path)
    state = run.state_dict()["state"]
    with safe_open(path, framework="numpy") as file:
        names = set(file.keys())
        for name in SHAPES:
            called = encoded(name)
            np.testing.assert_array_equal(file.get_tensor(called), run.params[name])
            for key in ("exp_avg", "exp_avg_sq", "ema"):
                stored = file.get_tensor(f"{called}.{key}")
                assert (stored.dtype, stored.tobytes()) == (state[name][key].dtype, state[name][key].tobytes())
    assert len(names) == 4 * len(SHAPES)
    assert {"w", "w.exp_avg_sq", "0", "b.ema", "#%22w%2Eexp_avg%22"} <= names


def test_torch_opens_it_too(path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load

    run = make(dtype=bfloat16)
    run.save(path)
    assert load(path)["w"].dtype == torch.bfloat16


def test_numbers_of_a_run_are_in_the_metadata(path):
    run = make("NAdam", nonfinite="skip", seed=3)
    train(run, range(2), lambda step: ("b",))
    run.save(path)
    manifest = json.loads(header_of(path.read_bytes())[0]["__metadata__"]["fastadam"])
    assert manifest["fastadam"] == fastadam.__version__
    assert manifest["optimizer"] == "NAdam"
    assert manifest["options"]["convention"] == "torch"
    assert (manifest["state"]["w"]["step"], manifest["state"]["b"]["step"], manifest["state"]["b"]["skipped"]) == (
        2,
        0,
        2,
    )
    assert manifest["formats"]["file"] == 1
    assert manifest["param_groups"][0]["betas"] == [0.9, 0.999]


NAMES = [0, "0", -1, "-1", "w", "w.exp_avg", "w.ema", "w.exp_avg.ema", "w.param", "#w", "#%22w%22", "__metadata__", ""]
NAMES += [
    "a b",
    "ä",
    "\ud800",
    "\n",
    '"',
    "header_crc32",
    "1.5",
    "None",
    None,
    True,
    1.5,
    ("w", 1),
    ("w", "1"),
    ("w", ("1",)),
]


def test_every_name_stays_itself(path):
    assert len({encoded(name) for name in NAMES}) == len(NAMES)
    shapes = {name: (position + 1,) for position, name in enumerate(NAMES)}
    run, other = (fastadam.Adam(arrays(seed, shapes=shapes), ema_decay=0.5) for seed in (1, 2))
    train(run, range(2))
    resumes(run, other, path)


def test_a_name_that_json_does_not_have_is_refused(tmp_path, path):
    opt = fastadam.Adam({frozenset("w"): np.ones(3)})
    with pytest.raises(TypeError, match=r"strings, numbers, None or tuples of these, got the name frozenset"):
        opt.save(path)
    opt = fastadam.Adam([{"params": np.ones(3), "note": object()}])
    with pytest.raises(TypeError, match=r"`param_groups\[0\]\['note'\]` must be"):
        opt.save(path)
    assert list(tmp_path.iterdir()) == []


def test_the_path_may_be_a_string_and_a_link(tmp_path):
    run, (target, link) = make(), (tmp_path / "target", tmp_path / "link")
    run.save(str(target))
    link.symlink_to(target)
    train(run, range(1))
    run.save(link)
    assert link.is_symlink()
    other = make(seed=4)
    other.load(target)
    assert kept(other) == kept(run)


def test_the_file_has_the_permissions_of_any_new_file(path, tmp_path):
    Path(tmp_path / "other").touch()
    make().save(path)
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_earlier_files_are_kept(tmp_path, path):
    opt, saved = make(), []
    for step in range(5):
        train(opt, [step])
        opt.save(path, keep=3)
        saved.append(everything(opt))
    assert {each.name for each in tmp_path.iterdir()} == {"run.safetensors", "run.1.safetensors", "run.2.safetensors"}
    other = make(seed=1)
    for name, expected in zip(("run", "run.1", "run.2"), reversed(saved), strict=False):
        other.load(tmp_path / f"{name}.safetensors")
        assert everything(other) == expected


@pytest.mark.parametrize(("keep", "error"), [(0, ValueError), (1.5, TypeError), (-1, ValueError)])
def test_at_least_one_file_is_kept(keep, error, path):
    with pytest.raises(error, match="`keep` must be"):
        make().save(path, keep=keep)
    assert not path.exists()


# --- parameters or none


def test_state_without_parameters(path):
    run, other = make(), make(seed=2)
    train(run, range(3))
    run.save(path, params=False)
    assert "w" not in load_file(path)
    before = everything(other)
    with pytest.raises(ValueError, match=r"must have parameters: .*`params=False`"):
        other.load(path)
    assert everything(other) == before
    taken = other.load(path, params=False).taken
    assert ("w" in taken, "w.exp_avg" in taken) == (False, True)
    assert other.state_dict()["state"]["w"]["exp_avg"].tobytes() == run.state_dict()["state"]["w"]["exp_avg"].tobytes()
    assert np.array_equal(other.params["w"], make(seed=2).params["w"])


def test_parameters_of_a_file_are_left_out_on_request(path):
    run, other = make(), make(seed=2)
    run.save(path)
    assert "w" in other.load(path, params=False).left_out
    assert np.array_equal(other.params["w"], make(seed=2).params["w"])


# --- other formats


def test_nothing_is_cast_unless_asked(path):
    run, other = make(), make(seed=2, moment_dtype="bfloat16")
    train(run, range(2))
    run.save(path)
    before = everything(other)
    with pytest.raises(
        TypeError, match=r"\['exp_avg'\]` must be bfloat16 as in this optimizer, got float32: .*convert"
    ):
        other.load(path)
    assert everything(other) == before
    other.load(path, convert=True)
    for name, entry in run.state_dict()["state"].items():
        expected = entry["exp_avg"].astype(bfloat16)
        assert other.state_dict()["state"][name]["exp_avg"].tobytes() == expected.tobytes()


def test_parameters_are_converted_too(path):
    run = make(dtype=bfloat16, master_weights=True)
    train(run, range(5))
    run.save(path)
    other = make(seed=2)
    other.load(path, convert=True)
    for name, master in run.masters.items():
        assert other.params[name].tobytes() == master.tobytes()
    other.save(path)
    again = make(seed=3, dtype=bfloat16, master_weights=True)
    again.load(path, convert=True)
    assert kept(again)[0] == kept(run)[0]
    plain = make(seed=3, dtype=bfloat16)
    plain.load(path, convert=True)
    assert plain.params["w"].tobytes() == other.params["w"].astype(bfloat16).tobytes()


# --- partial states


def test_a_new_head_begins_afresh_beside_a_trained_body(path):
    shapes = {"body": (4, 5), "head": (5, 3), "old": (2,)}
    run = fastadam.Adam(arrays(1, shapes=shapes), lr=0.1)
    train(run, range(4))
    run.save(path)
    later = {"body": (4, 5), "head": (5, 7), "new": (3,)}
    other = fastadam.Adam([{"params": arrays(2, shapes=later)}], lr=0.3)
    train(other, range(2))
    before, weights = everything(other), {name: array.copy() for name, array in other.params.items()}
    with pytest.raises(ValueError, match=r"must have an entry for every parameter and no other, got \['new', 'old'\]"):
        other.load(path)
    assert everything(other) == before
    report = other.load(path, strict=False)
    assert report.taken == ("body", "body.exp_avg", "body.exp_avg_sq")
    assert report.afresh == ("head.exp_avg", "head.exp_avg_sq", "new.exp_avg", "new.exp_avg_sq")
    assert set(report.left_out) == {*(f"{n}{k}" for n in ("head", "old") for k in ("", ".exp_avg", ".exp_avg_sq"))}
    state = other.state_dict()["state"]
    assert [state[name]["step"] for name in later] == [4, 0, 0]
    assert not state["head"]["exp_avg"].any()
    assert np.array_equal(other.params["body"], run.params["body"])
    assert np.array_equal(other.params["head"], weights["head"])
    assert other.param_groups[0]["lr"] == 0.1
    assert "3 arrays taken\n4 begun afresh: head.exp_avg" in str(report)
    # From here on each goes on from its own steps.
    alone = fastadam.Adam({"new": weights["new"]}, lr=0.1)
    other.step(gradients(other, 9))
    alone.step({"new": gradients(other, 9)["new"]})
    assert np.array_equal(other.params["new"], alone.params["new"])


def test_what_is_switched_on_begins_afresh(path):
    run, other = make(), make(seed=2, ema_decay=0.9, amsgrad=True)
    train(run, range(3))
    train(other, range(2))
    run.save(path)
    with pytest.raises(ValueError, match=r"must have the keys .*'ema'"):
        other.load(path)
    report = other.load(path, strict=False)
    assert {"w.ema", "w.max_exp_avg_sq"} <= set(report.afresh)
    assert report.changed == {"ema_decay": (None, 0.9)}
    assert "ema_decay: None when saved, 0.9 here" in str(report)
    assert other.param_groups[0]["amsgrad"] is True
    for name in SHAPES:
        assert np.array_equal(other.ema[name], run.params[name])
        assert not other.state_dict()["state"][name]["max_exp_avg_sq"].any()
    assert other.state_dict()["state"]["w"]["step"] == 3


def test_what_is_switched_off_is_left_out(path):
    run, other = make(ema_decay=0.9, amsgrad=True), make(seed=2)
    train(run, range(3))
    run.save(path)
    report = other.load(path, strict=False)
    assert {"w.ema", "w.max_exp_avg_sq"} <= set(report.left_out)
    assert other.param_groups[0]["amsgrad"] is False
    assert other.params["w"].tobytes() == run.params["w"].tobytes()


def test_masters_that_are_switched_on_begin_with_the_parameters(path):
    run, other = make(dtype=bfloat16), make(seed=2, dtype=bfloat16, master_weights=True)
    train(run, range(3))
    train(other, range(2))
    run.save(path)
    other.load(path, strict=False)
    assert all(np.array_equal(other.masters[name], run.params[name].astype(np.float32)) for name in SHAPES)


def test_state_of_another_member_or_convention_is_refused(path):
    make().save(path)
    for other, message in (
        (make("RAdam"), r"`.*: member` must be 'radam' as in this optimizer, got 'adam'"),
        (make(convention="keras"), r"`.*: convention` must be 'keras' as in this optimizer, got 'torch'"),
    ):
        before = everything(other)
        with pytest.raises(ValueError, match=message):
            other.load(path)
        assert everything(other) == before
        assert set(other.load(path, strict=False).changed) <= {"member", "convention"}


# --- schedules


def test_a_schedule_is_not_in_the_file_but_its_position(path):
    run = make(lr=HALVING)
    train(run, range(4))
    run.save(path)
    other = make(lr=0.5)
    before = everything(other)
    with pytest.raises(ValueError, match=r"\['lr'\]` must be a schedule as in the saved run, Exponential.*got 0.5"):
        other.load(path)
    assert everything(other) == before
    other.load(path, strict=False)
    assert other.get_last_lr() == [HALVING(4)]
    longer = fastadam.schedules.Exponential(0.1, decay_steps=30, decay_rate=0.5)
    other = make(lr=longer)
    other.load(path)
    assert other.get_last_lr() == [longer(4)]


def test_a_schedule_that_cannot_be_pickled_does_not_matter(path):
    run, other = (make(seed=seed, lr=lambda step: 0.1 / (1 + step)) for seed in (1, 2))
    train(run, range(3))
    resumes(run, other, path)
