"""What was measured, and what follows from it: a record that is saved as JSON and read again."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from fastadam.bench.contender import Contender
from fastadam.bench.registry import BASELINE
from fastadam.bench.workloads import Workload

SCHEMA = 1
# A result is marked if its quartiles lie farther apart than this part of the median.
WIDE = 0.2


class RecordError(Exception):
    """A record that cannot be read."""


@dataclass
class Result:
    """Seconds a step of a contender on a workload, one for each round.

    Attributes:
        size: The number of parameters.
        bytes: The bytes that a step has to read and write for each parameter.
        limit: The contender that moves the same bytes with trivial arithmetic.
    """

    workload: str
    size: int
    kind: str
    contender: str
    bytes: float
    limit: str
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, contender: Contender, workload: Workload, kind: str) -> "Result":
        """A result without any rounds."""
        moved = contender.bytes_moved(kind)
        return cls(workload.name, workload.size, kind, contender.name, moved, contender.limit)

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = quantiles(self.seconds, n=4)
        return low, high

    @property
    def is_wide(self) -> bool:
        """Whether the quartiles lie far apart."""
        low, high = self.quartiles
        return high - low > WIDE * self.median

    @property
    def is_limit(self) -> bool:
        """Whether it is the limit itself."""
        return self.contender == self.limit

    @property
    def nanoseconds_a_parameter(self) -> float:
        """The median time of a step, divided by the number of parameters."""
        return 1e9 * self.median / self.size

    @property
    def gigabytes_a_second(self) -> float:
        """The bytes that it has to move, over the time that it took."""
        return self.bytes * self.size / self.median / 1e9


@dataclass
class Record:
    """Everything that a run has measured.

    Attributes:
        machine: What `machine.facts` says.
        results: The results, in the order of the cases.
        missing: Contender -> why it is not there.
        skipped: What was left out because there was too little memory.
        failed: What could not be built, gave a wrong answer, or failed at work.
        left_out: Case -> contenders that the suite does not run in it.
        tables: Title -> what -> who -> seconds; or bytes, where what begins with "memory".
    """

    machine: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    tables: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    @property
    def bandwidth(self) -> dict[str, float]:
        """GB/s of plain reading, copying and scaling, on the largest workload on which they were measured."""
        plain = [result for result in self.results if result.contender.startswith("memory, ")]
        largest = max((result.size for result in plain), default=0)
        return {r.contender.removeprefix("memory, "): r.gigabytes_a_second for r in plain if r.size == largest}

    def find(self, workload: str, kind: str, contender: str) -> Result | None:
        """The result of a contender, if there is one."""
        for result in self.results:
            if (result.workload, result.kind, result.contender) == (workload, kind, contender):
                return result
        return None

    def share_of_limit(self, result: Result) -> float:
        """The time of the limit, divided by that of `result`; NaN without a limit."""
        limit = self.find(result.workload, result.kind, result.limit)
        return limit.median / result.median if limit else float("nan")

    def ratio(self, result: Result, baseline: str = BASELINE) -> float:
        """How many times as long the baseline takes; NaN if it was not measured."""
        other = self.find(result.workload, result.kind, baseline)
        return other.median / result.median if other else float("nan")

    def cases(self) -> list[list[Result]]:
        """The results of each workload and kind of step, in order."""
        cases: dict[tuple[str, str], list[Result]] = {}
        for result in self.results:
            cases.setdefault((result.workload, result.kind), []).append(result)
        return list(cases.values())

    def to_json(self) -> str:
        """The record as JSON, with one line for each result."""
        fields = asdict(self)
        results = [
            json.dumps({**each, "seconds": [float(f"{s:.5g}") for s in each["seconds"]]})
            for each in fields.pop("results")
        ]
        head = json.dumps({"schema": SCHEMA, **fields}, indent=1).removesuffix("\n}")
        return f'{head},\n "results": [\n  ' + ",\n  ".join(results) + "\n ]\n}\n"


def read_record(path: Path) -> Record:
    """The record in a file that `Record.to_json` has written."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(
            f"{path} must be a record of a benchmark run, but cannot be read: {error.strerror}"
        ) from error
    except ValueError as error:
        raise RecordError(f"{path} must be a record of a benchmark run, but is no JSON: {error}") from error
    try:
        return _of_fields(path, fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} must be a record of a benchmark run, but lacks something: {error}") from error


def _of_fields(path, fields):
    if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
        found = fields.get("schema") if isinstance(fields, dict) else type(fields).__name__
        raise RecordError(f"{path} must be a record of a benchmark run with schema {SCHEMA}, got {found!r}")
    results = [Result(**result) for result in fields.pop("results")]
    if not all(result.seconds and min(result.seconds) > 0 for result in results):
        raise TypeError("a result without seconds")
    fields.pop("schema")
    return Record(results=results, **fields)
