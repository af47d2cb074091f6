"""The suite on record with pytest-benchmark: `pytest bench --benchmark-only --benchmark-json=FILE`."""

from dataclasses import asdict, replace

import pytest

from fastadam.bench.machine import facts
from fastadam.bench.record import Record
from fastadam.bench.suite import full_cases, quick_cases, run_case
from fastadam.bench.workers import Workers


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="every contender, workload and kind of step")


def pytest_generate_tests(metafunc):
    cases = full_cases() if metafunc.config.getoption("--full") else quick_cases()
    pairs = [(case, name) for case in cases for name in case.with_limits]
    ids = [f"{case.workload.name}-{case.kind}-{name}" for case, name in pairs]
    metafunc.parametrize(("case", "name"), pairs, ids=ids)


class Runs:
    """Runs each case once, with the contenders that were selected, and answers for all of them."""

    def __init__(self, workers, items):
        self.record = Record(facts())
        self._workers = workers
        self._done: set[tuple[str, str]] = set()
        self._selected: dict[tuple[str, str], list[str]] = {}
        for item in items:
            if hasattr(item, "callspec"):
                case, name = item.callspec.params["case"], item.callspec.params["name"]
                self._selected.setdefault((case.workload.name, case.kind), []).append(name)

    def result(self, case, name):
        """The result of a contender in a case; the test is skipped where it is missing, and fails where it failed."""
        key = case.workload.name, case.kind
        if key not in self._done:
            self._done.add(key)
            run_case(self._workers, case._replace(contenders=tuple(self._selected[key])), self.record)
        found = self.record.find(*key, name)
        if found is not None:
            return found
        failed = [line for line in self.record.failed if line.startswith(case.title)]
        if failed:
            pytest.fail("; ".join(failed), pytrace=False)
        skipped = [line for line in self.record.skipped if line.startswith(f"{case.title}: {name} ")]
        pytest.skip(self.record.missing.get(name) or "; ".join(skipped))

    def part(self, result):
        """The record with this one result."""
        return asdict(replace(self.record, results=[result]))


@pytest.fixture(scope="session")
def runs(request):
    with Workers() as workers:
        yield Runs(workers, request.session.items)
