"""How several runs ended: their last steps, and the differences on the same problems, with intervals.

Intervals are 95% bootstrap intervals over groups. They cover the choice of problems. They do not say how much
another seed would change.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lambda_grpo.evaluating.intervals import bootstrap, resampled_means
from lambda_grpo.report.analysis import WEIGHTS, Table
from lambda_grpo.report.matching import Int

# What is compared, its title, and whether it is shown as a percentage.
MEASURES = (
    ("reward", "Reward", False),
    ("accuracy", "Accuracy", True),
    ("length", "Length, tokens", False),
    ("shared_tokens", "Tokens with |λ| > 1", True),
    ("path_depth", "Path depth", False),
    ("intermediate_proportion", "Intermediate proportion", True),
    ("push_removed", "Push that λ-GRPO takes off", True),
)
ENOUGH = 10  # problems, for an interval
_LAST = 5  # the last of this many parts of the training

Estimate = dict[str, Any]


def last_steps(steps: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The last fifth of the steps that all runs have, ascending; empty if they have none in common.

    >>> last_steps([np.arange(20), np.arange(10)]).tolist()
    [8, 9]
    """
    common = steps[0]
    for other in steps[1:]:
        common = np.intersect1d(common, other)
    common = np.unique(common)
    return common[len(common) - max(1, math.ceil(len(common) / _LAST)) :] if len(common) else common


def mean_of(groups: Table, rows: Int, measure: str) -> Estimate | None:
    """The mean of a measure over some groups, as the report takes it, with its interval if there are enough
    groups; None if no group defines it."""
    values = groups[measure][rows].astype(np.float64)
    weights = groups[WEIGHTS[measure]][rows].astype(np.float64) if measure in WEIGHTS else np.ones(len(rows))
    known = ~np.isnan(values) & (weights > 0)
    values, weights = values[known], weights[known]
    if not len(values):
        return None
    estimate: Estimate = {"mean": float(values @ weights / weights.sum()), "low": None, "high": None}
    if len(values) >= ENOUGH:
        both = np.stack([values * weights, weights], axis=1)
        drawn = resampled_means(both, resamples=_resamples(len(values)))
        low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
        estimate |= {"low": float(low), "high": float(high)}
    return estimate | {"groups": len(values)}


def difference(groups: Table, pairs: Int, measure: str) -> Estimate | None:
    """The mean difference of a measure, second minus first of each pair of groups, every pair counting the
    same; with its interval if there are enough; None if no pair defines it.

    Args:
        groups: the table of groups.
        pairs: (P, 2) rows of it, the same problem in two runs.
        measure: a column of it.
    """
    values = groups[measure].astype(np.float64)
    apart = values[pairs[:, 1]] - values[pairs[:, 0]]
    apart = apart[~np.isnan(apart)]
    if not len(apart):
        return None
    found = bootstrap(apart, resamples=_resamples(len(apart)))
    narrow = len(apart) < ENOUGH
    return {
        "mean": found.mean,
        "low": None if narrow else found.low,
        "high": None if narrow else found.high,
        "problems": len(apart),
    }


def _resamples(count: int) -> int:
    """Fewer where there are very many groups, so that a report never waits for its intervals."""
    return min(2000, max(200, 20_000_000 // count))


def training_figures(
    groups: Table, members: Sequence[Int], problems: Int, window: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """One object per measure: the mean of each run over the last steps, and its difference to the first run.

    Args:
        groups: the table of groups.
        members: of each run, its rows of the table.
        problems: (P, R), as `matching.match` gives them.
        window: the steps; if empty, each run's own last ones, and no differences.
    """
    steps = groups["step"]
    ends = []
    for rows in members:
        mine = window if len(window) else last_steps([steps[rows]])
        ends.append(rows[np.isin(steps[rows], mine)])
    inside = np.isin(steps, window)
    together = (problems >= 0) & inside[problems]
    figures = []
    for measure, title, percent in MEASURES:
        differences: list[Estimate | None] = [None]
        for run in range(1, len(members)):
            pairs = problems[together[:, 0] & together[:, run]][:, [0, run]]
            differences.append(difference(groups, pairs, measure))
        means = [mean_of(groups, rows, measure) for rows in ends]
        figures.append(_figure(measure, title, percent, means) | {"differences": differences})
    known = [figure for figure in figures if any(figure["runs"])]
    if len(known) > 1 and _equal(known[0], known[1]):  # every reward is 0 or 1
        del known[0]
    return known


def evaluation_figures(records: Sequence[Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """One object per measure of the evaluations after training, as they stand in the runs' folders."""
    names = list(dict.fromkeys(name for record in records for name in record))
    titles = {name: name.replace("_", " ").capitalize() for name in names}
    return [
        _figure(name, titles[name], name != "mean_reward", [record.get(name) for record in records])
        for name in names
    ]


def _figure(
    measure: str, title: str, percent: bool, runs: Sequence[Mapping[str, Any] | None]
) -> dict[str, Any]:
    return {"measure": measure, "title": title, "percent": percent, "runs": list(runs)}


def _equal(reward: Mapping[str, Any], accuracy: Mapping[str, Any]) -> bool:
    """Whether rewards say nothing that accuracy does not say."""
    names = (reward["measure"], accuracy["measure"])
    return names == ("reward", "accuracy") and reward["runs"] == accuracy["runs"]
