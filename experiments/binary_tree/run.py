"""binary_tree: how often each credit finds the target of the paper's toy tree (section 4.3).

Every combination of cell, variant and learning rate sees the same seeds: the same targets, the same weights
at the start and the same random numbers. So differences are taken seed by seed.

runs.jsonl     one line per combination: the target's frequency of each seed, and the curve over steps; an
               experiment that was stopped goes on with `--output` and the same folder
results.json   means and paired differences from grpo and lambda_grpo, with 95% bootstrap intervals over seeds
*.png          curves of each learning rate, and the ranking
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.binary_tree import toy_training, tree_pictures
from experiments.binary_tree.ranking import BASELINES, mean_table, rank_intervals
from experiments.binary_tree.toy_training import GROUP, Variant
from experiments.binary_tree.toy_tree import Cell
from experiments.binary_tree.tree_pictures import CURVE_STEPS
from experiments.common import resumable_runs
from lambda_grpo import console
from lambda_grpo.errors import InputError, unknown_name
from lambda_grpo.evaluating.intervals import bootstrap, resampled_means

MISSED_BELOW = 0.1  # a seed whose target is sampled less often has missed it
RESUMES_FROM = resumable_runs.FILE
CONTROLS = tuple(toy_training.controls(0))
CONTROLLED = ("grpo", "lambda_grpo", "lambda_grpo_matched")


@dataclass(frozen=True)
class Combination:
    """One cell, variant and learning rate."""

    cell: Cell
    variant: Variant
    learning_rate: float

    def identity(self) -> dict[str, Any]:
        """As runs.jsonl names it."""
        return {
            "cell": self.cell.name,
            "mode": self.cell.mode,
            "variant": self.variant.name,
            "learning_rate": self.learning_rate,
        }


def run(settings: Mapping[str, Any], output: Path) -> dict[str, float]:
    """Train all combinations, write runs and pictures, print the ranking; the figures.

    Raises:
        InputError: an unknown credit or model, or fewer steps than `last_steps`.
    """
    if settings["steps"] < settings["last_steps"]:
        raise InputError(f"last_steps: {settings['last_steps']} of only {settings['steps']} steps")
    shared = {key: settings[key] for key in ("model", "seeds", "steps", "last_steps", "beta")}
    combinations = _combinations(settings)
    wanted = [c.identity() for c in combinations]
    train = _Trainer(settings)
    with console.progress("Training") as shown:
        rows = resumable_runs.complete(output, wanted, shared, lambda i: train(combinations[i]), shown)
    rows = _of_whole_variants(rows, wanted)
    if not rows:
        return {}
    tree_pictures.draw([row for row in rows if row["variant"] not in CONTROLS], output)
    return summary(rows)


def cells(settings: Mapping[str, Any]) -> list[Cell]:
    """The paper's cells and our own."""
    pairs = product(settings["prefix_lengths"], settings["r_neg"])
    paper = [Cell("anti-exploitation", r_neg, n) for n, r_neg in pairs]
    return paper + [Cell("anti-exploration", r_neg) for r_neg in settings["crowd_r_neg"]]


def _of_whole_variants(rows: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of variants that lack no run, so that means over cells compare like with like."""
    lacking = Counter(run["variant"] for run in wanted) - Counter(row["variant"] for row in rows)
    return [row for row in rows if row["variant"] not in lacking]


def _combinations(settings: Mapping[str, Any]) -> list[Combination]:
    known = toy_training.variants()
    for name in settings["credits"]:
        if name not in known:
            raise unknown_name("credit", name, known)
    compared = [known[name] for name in settings["credits"] or known]
    controls = list(toy_training.controls(settings["beta"]).values())
    plan = list(product(settings["learning_rates"], compared))
    plan += product(settings["control_learning_rates"], controls)
    return [Combination(cell, variant, rate) for rate, variant in plan for cell in cells(settings)]


class _Trainer:
    """Trains all seeds of a combination; draws and policies are the same for all combinations."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.model, self.last_steps = settings["model"], settings["last_steps"]
        seeds, at_once = range(settings["seeds"]), settings["models_at_once"]
        self.parts = [seeds[i : i + at_once] for i in range(0, len(seeds), at_once)]
        self.draws = [toy_training.draw(part, settings["steps"]) for part in self.parts]
        self.kept = [self._policies(0)] if len(self.parts) == 1 else []

    def __call__(self, c: Combination) -> dict[str, Any]:
        """What a line of runs.jsonl holds beside the identity."""
        counts = []
        for i, draws in enumerate(self.draws):
            start = self.kept[i] if self.kept else self._policies(i)
            counts.append(toy_training.train(start, draws, c.cell, c.variant, c.learning_rate))
        return _measures(np.concatenate(counts, axis=1), c.cell, self.last_steps)

    def _policies(self, i: int) -> toy_training.Policies:
        return toy_training.policies(self.model, self.parts[i])


def _measures(counts: NDArray[np.uint8], cell: Cell, last: int) -> dict[str, Any]:
    """From the counts (steps, seeds, 16) of each `leaf XOR target`."""
    frequency = counts / GROUP
    final = frequency[-last:].mean(axis=0)
    points = len(frequency) // CURVE_STEPS
    curve = frequency[: points * CURVE_STEPS, :, 0].reshape(points, CURVE_STEPS, -1).mean(axis=1).T
    low, high = np.quantile(resampled_means(curve), [0.025, 0.975], axis=0)
    return {
        "target": final[:, 0].round(4).tolist(),
        "good_others": final[:, cell.rewards() == 0.7].sum(axis=1).round(4).tolist(),
        "curve": {
            "mean": curve.mean(axis=0).round(3).tolist(),
            "low": low.round(3).tolist(),
            "high": high.round(3).tolist(),
        },
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Print the rankings; every mean, paired difference and rank with its interval, by name.

    Credits are ranked at each learning rate and over all of them; the controls stand beside the credits that
    they control for.
    """
    figures = _by_cell(rows)
    credits = [row for row in rows if row["variant"] not in CONTROLS]
    rates = list(dict.fromkeys(row["learning_rate"] for row in rows))
    for mode in dict.fromkeys(row["mode"] for row in rows):
        at: dict[str, list[dict[str, Any]]] = {
            f"{mode} | lr {rate:g}": [r for r in credits if (r["mode"], r["learning_rate"]) == (mode, rate)]
            for rate in rates
        }
        if len(rates) > 1:
            at[f"{mode} | all rates"] = [r for r in credits if r["mode"] == mode]
        for title, chosen in at.items():
            figures |= _ranking(title, chosen, BASELINES)
        for rate in {r["learning_rate"] for r in rows if r["variant"] in CONTROLS}:
            here = [r for r in rows if (r["mode"], r["learning_rate"]) == (mode, rate)]
            chosen = [r for r in here if r["variant"] in (*CONTROLS, *CONTROLLED)]
            figures |= _ranking(f"controls, {mode} | lr {rate:g}", chosen, (*BASELINES, *CONTROLS[1:3]))
    return figures


def _by_cell(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean, seeds that missed the target and paired difference from grpo of every combination."""
    figures: dict[str, float] = {}
    frequency = {(r["cell"], r["learning_rate"], r["variant"]): np.array(r["target"]) for r in rows}
    for (cell, rate, variant), found in frequency.items():
        name = f"{cell} | lr {rate:g} | {variant}"
        figures[name] = round(float(found.mean()), 4)
        figures[f"{name} | missed"] = int((found < MISSED_BELOW).sum())
        base = frequency.get((cell, rate, "grpo"))
        if base is not None and variant != "grpo":
            difference = bootstrap(found - base)
            for part, value in (
                ("", difference.mean),
                (" | low", difference.low),
                (" | high", difference.high),
            ):
                figures[f"{name} - grpo{part}"] = round(value, 4)
    return figures


def _ranking(title: str, rows: list[dict[str, Any]], baselines: tuple[str, ...]) -> dict[str, float]:
    ranked = rank_intervals(mean_table(rows), baselines)
    tree_pictures.show(title, ranked, baselines)
    return {key: value for r in ranked for key, value in r.figures(f"{title} | {r.name}").items()}
