"""Tables of the curves: which seeds a number is over, and the numbers worked by hand."""

import math
from typing import Any

import numpy as np
import pytest

from experiments.curves import curve_tables
from experiments.curves.curve_differences import compare


def row(credit: str, seed: int, accuracy: list[float]) -> dict[str, Any]:
    return {"task": "sums", "credit": credit, "seed": seed, "steps": [0, 5], "accuracy": accuracy}


ROWS = [
    row("grpo", 3, [0.2, 0.4]),
    row("grpo", 0, [0.1, 0.5]),
    row("grpo", 1, [0.1, 0.3]),
    row("mine", 1, [0.1, 0.6]),
    row("mine", 0, [0.1, 0.6]),
    row("mine", 2, [0.0, 0.2]),
]


def test_means_are_over_all_seeds_and_differences_over_those_of_both() -> None:
    lines = curve_tables.means(compare(ROWS)).splitlines()
    assert lines[2] == "| `grpo` | 0, 1, 3 | 0.400 | 5 | 0.267 | 0.400 |"
    assert lines[3] == "| `mine` | 0, 1, 2 | 0.467 | 5 | 0.267 | 0.467 |"
    half = 12.7062 * 0.1  # Student's t with one degree of freedom; the differences are .1 and .3
    expected = f"| `mine` − `grpo` | 0, 1 | +0.200 [{0.2 - half:+.3f}, {0.2 + half:+.3f}] |"
    assert lines[4].startswith(expected)
    assert len(lines) == 5


def test_differences_stand_in_the_order_of_their_seeds() -> None:
    (_, _, mean, peak) = curve_tables.changes(compare(ROWS)).splitlines()
    spread = math.sqrt(2) * 0.1
    enough = (2.802 * spread / 0.05) ** 2 + 1.960**2 / 2
    assert peak == f"| `mine` | peak | 0, 1 | +0.100, +0.300 | {spread:.3f} | 0.05: {math.ceil(enough)} |"
    assert "| mean over steps | 0, 1 | +0.050, +0.150 |" in mean


def test_one_pair_and_none() -> None:
    assert curve_tables.changes(compare(ROWS[1:2] + ROWS[4:5])) == ""
    assert curve_tables.changes(compare(ROWS[:3])) == ""
    lines = curve_tables.means(compare(ROWS[1:2] + ROWS[4:5])).splitlines()
    assert lines[4].startswith("| `mine` − `grpo` | 0 | +0.100 | +0 |"), "no interval of one pair"


@pytest.mark.parametrize(("pairs", "spread"), [(13, 0.059), (67, 0.144)])
def test_that_many_pairs_tell_four_times_in_five(pairs: int, spread: float) -> None:
    """By simulation: the t test at 5% finds .05 in 77% to 83% of the draws."""
    rng = np.random.default_rng(0)
    differences = np.array([-1.0, 0.0, 1.0]) * spread
    assert curve_tables.pairs_to_tell(differences, 0.05) == pytest.approx(pairs, abs=1)
    draws = rng.normal(0.05, spread, (20_000, pairs))
    t = draws.mean(axis=1) / draws.std(axis=1, ddof=1) * math.sqrt(pairs)
    critical = {13: 2.179, 67: 1.997}[pairs]
    assert 0.77 < (np.abs(t) > critical).mean() < 0.83
