"""Records of runs: what follows from the times, files of JSON, and comparisons of two runs."""

import json
import re
from math import isnan

import pytest
from bench_records import MACHINE, result, rounds, run

from fastadam.bench import tables
from fastadam.bench.compare import changes
from fastadam.bench.record import SCHEMA, Record, RecordError, read_record


def test_what_follows_from_the_times_of_a_result():
    one = result("fastadam", [5e-6, 1e-6, 3e-6, 2e-6, 4e-6], size=1_000, moved=28)
    assert (one.median, one.quartiles) == (3e-6, (1.5e-6, 4.5e-6))
    assert one.nanoseconds_a_parameter == pytest.approx(3.0)
    assert one.gigabytes_a_second == pytest.approx(28 / 3)
    assert result("fastadam", [2e-6]).quartiles == (2e-6, 2e-6)


@pytest.mark.parametrize(("spread", "wide"), [(0.06, False), (0.07, True)])
def test_quartiles_more_than_a_fifth_of_the_median_apart_are_marked(spread, wide):
    one = result("fastadam", rounds(1e-6, spread))
    assert one.is_wide is wide
    assert tables.row(Record({}, [one]), one)[2].startswith("~") is wide


def test_shares_of_the_limit_and_ratios_to_a_baseline():
    record = run()
    assert [record.share_of_limit(each) for each in record.results] == pytest.approx([0.05, 0.4, 0.5, 1.0, 1.0])
    assert [record.ratio(each) for each in record.results] == pytest.approx([1.0, 8.0, 10.0, 20.0, 12.5])
    assert [record.ratio(each, "fastadam") for each in record.results] == pytest.approx([0.1, 0.8, 1.0, 2.0, 1.25])


def test_the_bandwidth_is_that_of_the_largest_workload():
    record = run()
    assert record.bandwidth == {"copy": pytest.approx(25.0)}
    for name in ("read", "copy"):
        record.results.insert(0, result(f"memory, {name}", [1e-3], size=10_000_000, moved=8, limit=f"memory, {name}"))
    assert record.bandwidth == {"read": pytest.approx(80.0), "copy": pytest.approx(80.0)}
    assert Record({}).bandwidth == {}


def test_limit_and_baseline_are_those_of_the_same_workload_kind_and_layout():
    others = [
        result("fastadam", [1.0], kind="full"),
        result("fastadam", [1.0], workload="flat 100"),
        result("fastadam, 8-bit m, v", [1.0], limit="limit, 8-bit m, v"),
    ]
    record = run()
    record.results += others
    assert all(isnan(record.share_of_limit(each)) for each in others)
    assert [isnan(record.ratio(each)) for each in others] == [True, True, False]
    assert [len(case) for case in record.cases()] == [6, 1, 1]


@pytest.mark.parametrize("record", [run(), Record(dict(MACHINE), failed=["all of it"])], ids=["full", "empty"])
def test_a_saved_record_is_read_again(tmp_path, record):
    path = tmp_path / "record.json"
    path.write_text(record.to_json(), encoding="utf-8")
    assert read_record(path) == record
    lines = [line for line in path.read_text().splitlines() if '"seconds"' in line]
    assert len(lines) == len(record.results)


RESULT = json.dumps(vars(result("fastadam", [1.0])))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not JSON", "is no JSON"),
        (b'{"schema": 1, ', "is no JSON"),
        (b"\xff\xfe\x00", "is no JSON"),
        (b"[1, 2]", "with schema 1, got 'list'"),
        (b"{}", "with schema 1, got None"),
        (b'{"schema": 99, "machine": {}, "results": []}', "with schema 1, got 99"),
        (b'{"schema": 1, "machine": {}}', "lacks something: 'results'"),
        (b'{"schema": 1, "results": []}', "lacks something: .* 'machine'"),
        (b'{"schema": 1, "machine": {}, "results": [{"workload": "MLP"}]}', "lacks something: .* 'size'"),
        (b'{"schema": 1, "machine": {}, "results": [%s], "more": 1}' % RESULT.encode(), "lacks something: .*'more'"),
        (b'{"schema": 1, "machine": {}, "results": [%s]}' % RESULT.replace("1.0", "").encode(), "without seconds"),
    ],
)
def test_a_file_that_is_no_record_is_refused_by_its_name(tmp_path, content, reason):
    assert SCHEMA == 1
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=rf"some\.json must be a record of a benchmark run.* {reason}"):
        read_record(path)


def test_what_cannot_be_read_is_refused_by_its_name(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere.json"):
        with pytest.raises(RecordError, match=f"{re.escape(str(path))} must be .*, but cannot be read: [A-Z]"):
            read_record(path)


def slower(before, after, threshold=0.15):
    return [change.contender for change in changes(before, after) if change.is_slower(threshold)]


OURS = ["fastadam, step(grads)", "fastadam"]


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (run(), run(), []),
        (run(), run(machine=2.0), []),
        (run(), run(ours=0.5), []),
        (run(), run(ours=1.1), []),
        (run(), run(ours=1.3), OURS),
        (run(), run(ours=1.3, machine=0.5), OURS),
        (run(), run(ours=1.3, spread=0.2), []),
        (run(spread=0.2), run(ours=1.3), []),
        (run(spread=0.2), run(ours=4.0, spread=0.2), OURS),
    ],
    ids=[
        "the same run",
        "a slower machine",
        "faster",
        "a little slower",
        "slower",
        "slower on a faster machine",
        "wide quartiles now",
        "wide quartiles before",
        "slower than wide quartiles tell",
    ],
)
def test_a_loss_of_the_share_of_the_limit_is_found_and_noise_is_not(before, after, found):
    assert slower(before, after) == found


def test_the_threshold_is_a_part_of_the_share():
    before, after = run(), run(ours=1.3)
    (change, _) = changes(before, after)
    assert (change.before, change.after, change.ratio) == pytest.approx((0.4, 0.4 / 1.3, 1 / 1.3), rel=1e-4)
    assert slower(before, after, 0.22) == OURS
    assert slower(before, after, 0.24) == []


def test_only_what_both_runs_have_with_its_limit_is_compared():
    before, after = run(), run(ours=2.0)
    after.results = [each for each in after.results if each.contender != "fastadam"]
    after.results.append(result("fastadam", [1.0], kind="full"))
    assert slower(before, after) == ["fastadam, step(grads)"]
    after.results = [each for each in after.results if not each.is_limit]
    assert changes(before, after) == []
