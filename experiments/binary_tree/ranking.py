"""Ranking by interval: who is ahead of whom, over the same seeds.

A mean that is higher says nothing by itself. Seeds are resampled, all variants together; the rank of a
variant is an interval over the resamples, and it is ahead of another only if the interval of the paired
difference excludes 0. Many pairs are compared, and no correction is made: one interval in twenty errs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lambda_grpo.evaluating.intervals import Estimate, bootstrap, resampled_means

Table = Mapping[str, NDArray[np.float64]]
BASELINES = ("grpo", "lambda_grpo")


@dataclass(frozen=True)
class Ranked:
    """One variant: its mean, its rank (1 is best) with 95% interval, paired differences from baselines."""

    name: str
    mean: Estimate
    rank: Estimate
    ahead_of: Mapping[str, Estimate]

    def figures(self, name: str) -> dict[str, float]:
        """Flat, for results.json."""
        estimates = {"": self.mean, " | rank": self.rank}
        estimates |= {f" - {other}": difference for other, difference in self.ahead_of.items()}
        return {
            f"{name}{what}{part}": round(value, 4)
            for what, e in estimates.items()
            for part, value in (("", e.mean), (" | low", e.low), (" | high", e.high))
        }


def mean_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[np.float64]]:
    """Variant → (seeds,) mean over the cells."""
    names = dict.fromkeys(row["variant"] for row in rows)
    return {
        name: np.mean([row["target"] for row in rows if row["variant"] == name], axis=0) for name in names
    }


def rank_intervals(table: Table, baselines: Sequence[str] = BASELINES) -> list[Ranked]:
    """The variants, best first, each with its paired differences from the baselines.

    >>> best, worst = rank_intervals({"grpo": np.array([0.1, 0.2, 0.3]), "new": np.array([0.2, 0.3, 0.4])})
    >>> best.name, best.rank, best.ahead_of["grpo"].low > 0
    ('new', Estimate(mean=1.0, low=1.0, high=1.0), True)
    """
    names = list(table)
    means = resampled_means(np.stack(list(table.values()), axis=1))
    ranks = 1 + (means[:, None, :] > means[:, :, None]).sum(axis=2)
    ranked = []
    for i, name in enumerate(names):
        low, high = np.quantile(ranks[:, i], [0.025, 0.975])
        differences = {b: bootstrap(table[name] - table[b]) for b in baselines if b in table and b != name}
        rank = Estimate(float(ranks[:, i].mean()), float(low), float(high))
        ranked.append(Ranked(name, bootstrap(table[name]), rank, differences))
    return sorted(ranked, key=lambda r: -r.mean.mean)
