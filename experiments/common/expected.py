"""What an experiment should find (expected.json), and whether it did.

{"full": {"figure": {"low": 0.1, "high": 0.3}}, "quick": {…}}: a figure agrees if it lies in [low, high]; a
bound that is left out does not bind.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lambda_grpo.errors import InputError


@dataclass(frozen=True)
class Check:
    """One expected figure beside what came out; `got` is nan if it did not come out at all."""

    name: str
    low: float
    high: float
    got: float

    @property
    def agrees(self) -> bool:
        return self.low <= self.got <= self.high


def compare(figures: Mapping[str, float], expected: Mapping[str, Mapping[str, float]]) -> list[Check]:
    """One check for each expected figure.

    >>> [check.agrees for check in compare({"a": 0.5}, {"a": {"low": 0.4}, "b": {"low": 0, "high": 1}})]
    [True, False]
    """
    return [
        Check(name, bound.get("low", -math.inf), bound.get("high", math.inf), figures.get(name, math.nan))
        for name, bound in expected.items()
    ]


def read(path: Path, part: str) -> dict[str, Any]:
    """The expected figures of the `full` or the `quick` experiment.

    Raises:
        InputError: a file that is not there or not of this form.
    """
    try:
        bounds = json.loads(path.read_text())[part]
        if all(set(bound) <= {"low", "high"} and bound for bound in bounds.values()):
            return dict(bounds)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{str(path)!r}: cannot be read as expected figures: {error!r}") from error
    raise InputError(f'{str(path)!r}: expected "figure": {{"low": number, "high": number}} in {part!r}')
