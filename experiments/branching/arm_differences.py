"""What the curves of the arms come to, at equal sampled tokens and at equal seconds, paired by seed.

The arms of a seed see the same problems, but draw not quite the same number of tokens, and take different
times. So each curve is averaged up to the place that all arms of its seed have reached. Besides validation
there is the reward of the training completions: each step's problems are new, and each completion of a fork
has the distribution of an independent one, so this is the accuracy of the policy before the step.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from experiments.common.estimates import bounds, short
from experiments.common.panels import TITLE, draw_curve, draw_differences, of_seeds
from lambda_grpo import console
from lambda_grpo.evaluating.intervals import Estimate, student
from lambda_grpo.whole_files import written_whole

Row = Mapping[str, Any]
BASELINE = "chains-grpo"
MEASURES = ("mean over tokens", "mean over seconds", "training over tokens", "end")
SHOWN = MEASURES[:3]
TOTALS = ("tokens", "seconds")
COLOURS = {"grpo": "black", "lambda_grpo": "#d62728", "branch": "#1f77b4"}
OTHERS = "grey"


def mean_up_to(x: Sequence[float], y: Sequence[float], end: float) -> float:
    """The mean of the curve (x, y), straight between its points, from its first x up to `end`.

    >>> mean_up_to([0, 10, 20], [0.0, 1.0, 1.0], 15)
    0.6666666666666666
    """
    places = np.array([*(place for place in x if place < end), end])
    heights = np.interp(places, x, y)
    area = np.sum((heights[1:] + heights[:-1]) / 2 * np.diff(places))
    return float(area / (end - places[0]))


def measured(rows: Sequence[Row]) -> dict[str, dict[int, dict[str, float]]]:
    """arm → seed → measure, of one task."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for row in rows:
        same = [other for other in rows if other["seed"] == row["seed"]]
        reach = {x: min(other[x][-1] for other in same) for x in TOTALS}
        begun = min(other["tokens_before"][-1] for other in same)
        found.setdefault(row["arm"], {})[row["seed"]] = {
            **{
                f"mean over {total}": mean_up_to(row[total], row["accuracy"], reach[total])
                for total in TOTALS
            },
            "end": row["accuracy"][-1],
            "training over tokens": mean_up_to(row["tokens_before"], row["training_reward"], begun),
            **{total: float(row[total][-1]) for total in TOTALS},
        }
    return found


def differences(found: Mapping[str, Mapping[int, Mapping[str, float]]], arm: str) -> dict[str, Estimate]:
    """By measure, an arm minus chains with grpo, over the seeds that both have run."""
    return {name: student(_one_by_one(found, arm, name)) for name in MEASURES}


def _one_by_one(
    found: Mapping[str, Mapping[int, Mapping[str, float]]], arm: str, measure: str
) -> list[float]:
    base = found.get(BASELINE, {})
    both = sorted(found[arm].keys() & base.keys())
    return [found[arm][s][measure] - base[s][measure] for s in both]


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """Flat, for results.json: `task | arm | measure`, `… | low`, `… | high`, and `arm - chains-grpo`."""
    flat: dict[str, float] = {}
    for task, of_task in by_task(rows).items():
        found = measured(of_task)
        for arm, seeds in found.items():
            flat[f"{task} | {arm} | seeds"] = len(seeds)
            for name in (*MEASURES, *TOTALS):
                flat |= bounds(f"{task} | {arm} | {name}", student([m[name] for m in seeds.values()]))
            if arm != BASELINE:
                for name, estimate in differences(found, arm).items():
                    flat |= bounds(f"{task} | {arm} - {BASELINE} | {name}", estimate)
    return flat


def by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each task, under its name without its module."""
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(short(row["task"]), []).append(row)
    return tasks


def show(rows: Sequence[Row]) -> None:
    """Print a table: each arm's accuracy, and its differences from chains with grpo."""
    titles = [f"{name} minus {BASELINE}" for name in SHOWN]
    shown = Table("task", "arm", "mean over tokens", *titles, "tokens", "seconds")
    for task, of_task in by_task(rows).items():
        found = measured(of_task)
        for arm, seeds in found.items():
            own = [student([m[name] for m in seeds.values()]) for name in ("mean over tokens", *TOTALS)]
            changes = ["–"] * len(SHOWN)
            if arm != BASELINE:
                estimates = differences(found, arm)
                changes = [format(estimates[name], "+.3f") for name in SHOWN]
            cells = (format(own[0]), *changes, f"{own[1].mean:,.0f}", f"{own[2].mean:.1f}")
            shown.add_row(task, arm, *map(escape, cells))
    console.CONSOLE.print(shown)


def draw(rows: Sequence[Row], path: Path) -> None:
    """A line of panels per task: accuracy by sampled tokens, by seconds, and the differences over tokens."""
    from matplotlib.figure import Figure

    tasks = by_task(rows)
    figure = Figure(figsize=(12, 3.4 * len(tasks) + 0.9), layout="constrained")
    panels = figure.subplots(len(tasks), 3, squeeze=False, gridspec_kw={"width_ratios": [3, 3, 2.6]})
    for line, (task, of_task) in zip(panels, tasks.items(), strict=True):
        for arm in dict.fromkeys(row["arm"] for row in of_task):
            _curve(line, [row for row in of_task if row["arm"] == arm], arm)
        found = measured(of_task)
        arms = [arm for arm in found if arm != BASELINE]
        draw_differences(line[2], [(a, _style(a)[0], _one_by_one(found, a, SHOWN[0])) for a in arms])
        seeds = of_seeds([len(by_seed) for by_seed in found.values()])
        line[0].set_ylabel(f"{task} ({seeds})\nvalidation accuracy")
        for axes in line:
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
    labels = ("sampled tokens", "processor seconds of training", f"mean over tokens minus {BASELINE}'s")
    for axes, label in zip(panels[-1], labels, strict=True):
        axes.set_xlabel(label)
    figure.suptitle(TITLE, x=0.01, ha="left")
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False
    )
    with written_whole(path) as aside:
        figure.savefig(aside, format="png", dpi=110)


def _style(arm: str) -> tuple[str, str]:
    """Colour, which is the credit's, and line."""
    how, _, credit = arm.partition("-")
    return COLOURS.get(credit, OTHERS), "--" if how == "branched" else "-"


def _curve(line: Any, rows: Sequence[Row], arm: str) -> None:
    colour, dashes = _style(arm)
    for axes, total in zip(line[:2], TOTALS, strict=True):
        x = np.mean([row[total] for row in rows], axis=0)
        draw_curve(axes, x, [row["accuracy"] for row in rows], colour, arm, dashes)
