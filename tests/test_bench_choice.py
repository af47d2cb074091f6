"""The quick and the full suite, and what names choose of them."""

import pytest

from fastadam.bench import suite
from fastadam.bench.command import choose, named
from fastadam.bench.registry import BASELINE, CONTENDERS
from fastadam.bench.suite import full_cases, quick_cases
from fastadam.bench.workloads import WORKLOADS


def titles(cases):
    return [case.title for case in cases]


def test_a_name_may_be_how_it_begins_in_any_case_of_letters():
    assert named("--contender", ["TORCH, Fu"], CONTENDERS)[0] == "torch, fused"
    assert named("--contender", ["numpy"], CONTENDERS) == ["NumPy, textbook", "NumPy, in place"]
    # One that is called so is meant alone.
    assert named("--contender", ["FastAdam"], CONTENDERS) == ["fastadam"]
    assert named("--workload", ["mlp", "gpt"], WORKLOADS) == ["MLP, 6 tensors", "GPT-2 124M, 148 tensors"]


def test_without_names_the_quick_suite_is_chosen_and_with_full_all():
    assert choose(False, [], [], [], None) == quick_cases()
    assert choose(True, [], [], [], None) == full_cases()
    assert {case.rounds for case in choose(True, [], [], [], 7)} == {7}


def test_names_narrow_the_suite_down():
    (case,) = choose(False, ["numpy", "fastadam"], ["MLP"], ["plain"], None)
    assert (case.title, case.left_out) == ("MLP, 6 tensors, plain", ())
    assert case.contenders == ("NumPy, textbook", "NumPy, in place", "fastadam")
    assert titles(choose(False, ["torch, fused"], ["MLP"], [], None)) == [
        "MLP, 6 tensors, plain",
        "MLP, 6 tensors, full",
    ]
    # NumPy has no full step.
    assert titles(choose(False, ["numpy"], ["MLP"], [], None)) == ["MLP, 6 tensors, plain"]


def test_what_is_named_is_chosen_where_the_quick_suite_would_do_without():
    assert titles(choose(False, ["fastadam"], ["gpt-2"], ["full"], None)) == ["GPT-2 124M, 148 tensors, full"]
    assert titles(choose(False, [], ["flat 10,000"], [], None)) == ["flat 10,000, plain"]
    assert {case.kind for case in choose(False, [], [], ["clip", "ex"], None)} == {"clip", "extras"}
    assert titles(choose(False, ["fastadam, AdamW"], [], [], None)) == ["flat 10,000,000, extras"]
    (case,) = choose(False, ["fastadam, bfloat16 m, v"], ["MLP"], ["plain"], None)
    assert case.contenders == ("fastadam, bfloat16 m, v",)


def test_costs_of_calls_groups_and_rows_are_cases():
    calls = {case.workload.name: case for case in full_cases() if case.kind == "calls"}
    one, pair, many = (calls[name] for name in ("flat 100", "2 tensors, 11 parameters", "10,000 tensors of 100"))
    ways = {"fastadam", "fastadam, where they lie", "fastadam, where they lie, new arrays"}
    assert {*ways, "fastadam, adam_step", "kernel alone", "NumPy, textbook"} <= {*one.contenders}
    assert "kernel alone" in pair.left_out
    assert ways <= {*many.contenders}
    assert {*many.left_out} == {"fastadam, adam_step", "kernel alone"}
    groups = choose(False, [], ["465"], ["groups"], None)
    assert [case.contenders for case in groups] == [
        ("fastadam, one group", "fastadam, a group each", "fastadam, rates assigned")
    ]
    (rows,) = choose(False, [], [], ["rows"], None)
    assert rows.with_limits == (
        "fastadam", "fastadam, lazy rows", "fastadam, exact rows", "limit, float32", "limit, rows"
    )  # fmt: skip


@pytest.mark.parametrize("case", full_cases(), ids=lambda case: case.title)
def test_the_full_suite_has_or_names_every_contender_of_a_kind(case):
    able = {name for name, each in CONTENDERS.items() if case.kind in each.kinds and not each.is_limit}
    # On flat workloads, and on large ones.
    apart = {*suite.THREADS, *suite.BANDWIDTH}
    assert {*case.contenders, *case.left_out} | apart == able | apart
    assert not {*case.contenders} & {*case.left_out}


def test_names_in_the_suite_are_those_of_contenders():
    assert {*suite.QUICK, *suite.LARGE, *suite.MOST_TENSORS, BASELINE} <= CONTENDERS.keys()


@pytest.mark.parametrize("cases", [quick_cases(), full_cases()], ids=["quick", "full"])
def test_every_case_is_there_once(cases):
    assert len(set(titles(cases))) == len(cases)
    assert all(case.contenders and case.rounds > 1 for case in cases)
