"""What λ changes in a run, against who won: overlap of the rollouts, gradient of the first batch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.estimates import short
from experiments.curves.curve_differences import BASELINE, COLOURS, OTHERS, measure
from experiments.llm_curves.one_run import OVERLAP
from lambda_grpo.evaluating.intervals import student
from lambda_grpo.whole_files import written_whole

ResultRows = Sequence[Mapping[str, Any]]
LEAST_PAIRS = 5  # for a rank correlation


def figures(rows: ResultRows) -> dict[str, float]:
    """Means over seeds, and over all pairs the rank correlation with the difference from grpo.

    - `task | credit | shared_tokens, first`: of the first batch; `… | mean`: over the run.
    - `task | credit | cosine`: between the credit's gradient and GRPO's on the first batch.
    - `cosine ~ mean over steps minus grpo`: Spearman's, over pairs of all tasks and credits. Above 0: the
      more a credit changes, the worse it does.
    """
    found: dict[str, float] = {}
    arms: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        arms.setdefault((short(row["task"]), row["credit"]), []).append(row)
    for (task, credit), of_arm in arms.items():
        values = {f"{name}, first": [_first(row[name]) for row in of_arm] for name in OVERLAP}
        values |= {f"{name}, mean": [mean_of(row[name]) for row in of_arm] for name in OVERLAP}
        values |= {name: [_first([row[name]]) for row in of_arm] for name in ("cosine", "norm_ratio")}
        means = {name: student(each).mean for name, each in values.items()}
        found |= {f"{task} | {credit} | {n}": round(m, 4) for n, m in means.items() if not np.isnan(m)}
    return found | _correlations(rows)


def pairs(rows: ResultRows) -> list[dict[str, float]]:
    """For each run beside grpo's of its task and seed: what changed, and the difference of the means."""
    base = {(r["task"], r["seed"]): r for r in rows if r["credit"] == BASELINE}
    found = []
    for row in rows:
        other = base.get((row["task"], row["seed"]))
        if row["credit"] != BASELINE and other is not None and row["cosine"] is not None:
            ahead = measure(row)["mean over steps"] - measure(other)["mean over steps"]
            changed = {"push_removed, mean": mean_of(row["push_removed"]), "cosine": row["cosine"]}
            found.append(changed | {"ahead": ahead})
    return found


def _correlations(rows: ResultRows) -> dict[str, float]:
    found = pairs(rows)
    if len(found) < LEAST_PAIRS:
        return {}
    ahead = [pair["ahead"] for pair in found]
    names = ("cosine", "push_removed, mean")
    values = {n: rank_correlation([pair[n] for pair in found], ahead) for n in names}
    return {f"{n} ~ mean over steps minus grpo": round(v, 4) for n, v in values.items() if not np.isnan(v)}


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's: the correlation of the ranks, equal values sharing their mean rank; NaN if all are equal.

    >>> round(rank_correlation([1, 2, 3, 4], [10, 30, 20, 90]), 6)
    0.8
    """
    ranks = []
    for values in (x, y):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        if len(counts) == 1:
            return math.nan
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[place])
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def draw(rows: ResultRows, path: Path) -> None:
    """A line of panels per task, a panel per measure of overlap, a curve per credit."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(3.2 * len(OVERLAP), 2.6 * len(tasks) + 0.8), layout="constrained")
    panels = figure.subplots(len(tasks), len(OVERLAP), squeeze=False, sharex=True)
    for line, task in zip(panels, tasks, strict=True):
        of_task = [row for row in rows if row["task"] == task]
        for axes, name in zip(line, OVERLAP, strict=True):
            for credit in dict.fromkeys(row["credit"] for row in of_task):
                steps = np.array([row[name] for row in of_task if row["credit"] == credit], np.float64)
                mean = np.nanmean(np.where(np.isnan(steps).all(axis=0), 0, steps), axis=0)
                axes.plot(1 + np.arange(len(mean)), mean, color=COLOURS.get(credit, OTHERS), label=credit)
            axes.set_title(f"{short(task)}: {name}", loc="left", fontsize=9)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
    lines, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=4, frameon=False)
    with written_whole(path) as aside:
        figure.savefig(aside, format="png", dpi=100)


def _first(values: Sequence[float | None]) -> float:
    return np.nan if values[0] is None else float(values[0])


def mean_of(values: Sequence[float | None]) -> float:
    """Of the steps that have a value; NaN if none has."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else np.nan
