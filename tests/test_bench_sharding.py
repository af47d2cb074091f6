"""The measurement of docs/scaling.md, run small, and its table."""

import json
from pathlib import Path

import pytest
from engines import needs_gloo

from fastadam.bench import sharding


@needs_gloo
@pytest.mark.xdist_group("engines")
def test_what_ranks_keep_and_send_is_measured():
    record = sharding.measured(200_000, (1, 2))
    for by_ranks in record["found"].values():
        assert by_ranks["1"]["sent"] == 0
        # Half of 4 bytes for each gradient and each parameter, and padding.
        assert 800_000 <= by_ranks["2"]["sent"] <= 900_000
        assert 0 < by_ranks["2"]["collectives"] < by_ranks["2"]["step"]
        assert 0.45 < by_ranks["2"]["kept"] / by_ranks["1"]["kept"] < 0.6
    assert [row[1] for row in sharding.rows(record)] == ["1", "2"] * len(sharding.SETTINGS)


def test_the_page_says_what_was_measured():
    page = (Path(__file__).parent.parent / "docs" / "scaling.md").read_text("utf-8")
    record = json.loads((Path(__file__).parent.parent / "docs" / "sharding.json").read_text("utf-8"))
    for row in sharding.rows(record):
        assert all(cell in page for cell in row)
