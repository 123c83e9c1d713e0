"""What the curves of several seeds come to: estimates, paired differences from grpo, a table, a picture.

All intervals are those of Student's t over seeds: of ten or fewer the bootstrap's are too narrow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from experiments.common.estimates import bounds, short
from experiments.common.panels import TITLE, draw_curve, draw_differences, of_seeds
from lambda_grpo import console
from lambda_grpo.evaluating.intervals import Estimate, student
from lambda_grpo.whole_files import written_whole

ResultRows = Sequence[Mapping[str, Any]]
BASELINE = "grpo"
COLOURS = {
    "grpo": "black",
    "lambda_grpo": "#d62728",
    "optimistic": "#1f77b4",
    "lambda_grpo power=0.5": "#e377c2",
    "lambda_grpo_matched": "#ff7f0e",
    "lambda_grpo_unique": "#2ca02c",
    "tempo": "#9467bd",
    "treepo": "#8c564b",
    "vineppo": "#17becf",
}
OTHERS = "grey"  # a user's own
LEAST_SEEDS = 5  # for a verdict
MEASURES = ("peak", "step of the peak", "mean over steps", "end")


@dataclass(frozen=True)
class Compared:
    """One credit on one task: estimates by measure, and its paired differences from grpo.

    Attributes:
        seeds: those that the credit has run.
        paired: those that grpo has run too; none for grpo itself.
        estimates: over `seeds`, by measure.
        changes: the differences one by one, (paired,) by measure.
    """

    task: str
    credit: str
    seeds: tuple[int, ...]
    paired: tuple[int, ...]
    estimates: Mapping[str, Estimate]
    changes: Mapping[str, NDArray[np.float64]]

    @cached_property
    def differences(self) -> dict[str, Estimate]:
        """Over `paired`, by measure; none for grpo itself."""
        return {name: student(change) for name, change in self.changes.items()} if self.paired else {}

    @property
    def verdict(self) -> str:
        """Of the peak: `wins` or `loses` against grpo if the interval of the difference excludes 0."""
        if not self.differences:
            return ""
        if len(self.paired) < LEAST_SEEDS:
            return "too few seeds"
        peak = self.differences["peak"]
        return "wins" if peak.low > 0 else "loses" if peak.high < 0 else "ties"


def measure(row: Mapping[str, Any]) -> dict[str, float]:
    """The measures of one run. The first step counts where several share the peak.

    >>> measure({"steps": [0, 10, 20], "accuracy": [0.2, 0.7, 0.6]})
    {'peak': 0.7, 'step of the peak': 10.0, 'mean over steps': 0.5, 'end': 0.6}
    """
    accuracy = np.asarray(row["accuracy"])
    step = float(row["steps"][int(accuracy.argmax())])
    values = (float(accuracy.max()), step, round(float(accuracy.mean()), 6), float(accuracy[-1]))
    return dict(zip(MEASURES, values, strict=True))


def compare(rows: ResultRows) -> list[Compared]:
    """Every credit on every task, in the order of the rows."""
    found: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for row in rows:
        found.setdefault((row["task"], row["credit"]), {})[row["seed"]] = measure(row)
    compared = []
    for (task, credit), by_seed in found.items():
        base = found.get((task, BASELINE), {}) if credit != BASELINE else {}
        both = sorted(by_seed.keys() & base.keys())
        changes = {name: np.array([by_seed[s][name] - base[s][name] for s in both]) for name in MEASURES}
        compared.append(
            Compared(
                task,
                credit,
                tuple(sorted(by_seed)),
                tuple(both),
                {name: student([values[name] for values in by_seed.values()]) for name in MEASURES},
                changes,
            )
        )
    return compared


def flat(compared: Sequence[Compared]) -> dict[str, float]:
    """Flat, for results.json: `task | credit | measure`, `… | low`, `… | high`, and `credit - grpo`."""
    figures: dict[str, float] = {}
    for c in compared:
        for name, e in c.estimates.items():
            figures |= bounds(f"{short(c.task)} | {c.credit} | {name}", e)
        for name, e in c.differences.items():
            figures |= bounds(f"{short(c.task)} | {c.credit} - {BASELINE} | {name}", e)
    return figures


def show(compared: Sequence[Compared]) -> None:
    """Print peak and step of the peak, the differences and the verdict."""
    shown = Table("task", "credit", "peak", "step of the peak", "peak minus grpo", "mean minus grpo", "peak")
    for c in compared:
        changes = [format(c.differences[name], "+.3f") if c.differences else "–"
                   for name in ("peak", "mean over steps")]  # fmt: skip
        cells = (format(c.estimates["peak"]), f"{c.estimates['step of the peak'].mean:.0f}", *changes)
        shown.add_row(short(c.task), c.credit, *map(escape, cells), c.verdict)
    console.CONSOLE.print(shown)


def draw(rows: ResultRows, compared: Sequence[Compared], path: Path) -> None:
    """A line of panels per task: accuracy by step, by seconds, and the paired differences of the peaks."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(12, 3.6 * len(tasks) + 0.8), layout="constrained")
    panels = figure.subplots(
        len(tasks), 3, squeeze=False, sharex="col", gridspec_kw={"width_ratios": [3, 3, 2.4]}
    )
    for line, task in zip(panels, tasks, strict=True):
        of_task = [row for row in rows if row["task"] == task]
        for credit in dict.fromkeys(row["credit"] for row in of_task):
            _curve(line, [row for row in of_task if row["credit"] == credit], credit)
        here = [c for c in compared if c.task == task]
        draw_differences(
            line[2],
            [
                (f"{c.credit}\n{c.verdict}", COLOURS.get(c.credit, OTHERS), list(c.changes["peak"]))
                for c in here
                if c.paired
            ],
        )
        seeds = of_seeds([len(c.seeds) for c in here])
        line[0].set_ylabel(f"{short(task)} ({seeds})\nvalidation accuracy")
        for axes in line:
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        for axes in line[:2]:
            axes.set_ylim(0, min(axes.get_ylim()[1], 1.05))  # bands over two seeds reach beyond 1
    for axes, label in zip(
        panels[-1], ("step", "processor seconds of training", "peak minus grpo's, seed by seed"), strict=True
    ):
        axes.set_xlabel(label)
    left, right = panels[0, 2].get_xlim()  # of all panels of the column
    panels[0, 2].set_xlim(max(left, -1), min(right, 1))
    figure.suptitle(TITLE, x=0.01, ha="left")
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    with written_whole(path) as aside:
        figure.savefig(aside, format="png", dpi=110)


def _curve(line: Any, rows: ResultRows, credit: str) -> None:
    seconds = np.mean([row["seconds"] for row in rows], axis=0)
    for axes, x in zip(line[:2], (rows[0]["steps"], seconds), strict=True):
        draw_curve(axes, x, [row["accuracy"] for row in rows], COLOURS.get(credit, OTHERS), credit)
