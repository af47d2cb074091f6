"""Tests marked `gpu` run where a CUDA device works; elsewhere one line says how many did not, and why."""

import pytest
from gpu import device_problem

collect_ignore = ["hosts"]  # libraries that `make test-hosts` installs


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    problem = device_problem() if gpu else None
    if problem is None:
        return
    items[:] = [item for item in items if item not in gpu]
    config.hook.pytest_deselected(items=gpu)
    config.stash[_NOT_RUN] = f"{len(gpu)} gpu tests were not run: {problem}"


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if _NOT_RUN in config.stash:
        terminalreporter.write_line(config.stash[_NOT_RUN])


_NOT_RUN = pytest.StashKey[str]()
