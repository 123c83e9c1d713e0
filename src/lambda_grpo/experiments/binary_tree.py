"""binary-tree: how often each credit finds the target of the paper's toy tree (section 4.3).

Every combination of cell, variant and learning rate sees the same seeds: the same targets, the same weights
at the start and the same random numbers. So differences are taken seed by seed.

runs.jsonl     one line per combination: the target's frequency of each seed, and the curve over steps
results.json   means and paired differences from grpo and lambda_grpo, with 95% bootstrap intervals over seeds
*.png          curves of each learning rate, and the ranking
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lambda_grpo import console
from lambda_grpo.errors import InputError, unknown_name
from lambda_grpo.estimates import resampled_means
from lambda_grpo.experiments import binary_tree_figures, toy_training
from lambda_grpo.experiments.binary_tree_figures import CURVE_STEPS
from lambda_grpo.experiments.ranking import BASELINES, mean_table, rank_intervals
from lambda_grpo.experiments.toy_training import GROUP, Variant
from lambda_grpo.experiments.toy_tree import Cell

CONTROLS = tuple(toy_training.controls(0))
CONTROLLED = ("grpo", "lambda_grpo", "lambda_grpo_matched")


@dataclass(frozen=True)
class Combination:
    """One cell, variant and learning rate."""

    cell: Cell
    variant: Variant
    learning_rate: float


def run(settings: Mapping[str, Any], output: Path) -> dict[str, float]:
    """Train all combinations, write runs and pictures, print the ranking; the figures.

    Raises:
        InputError: an unknown credit or model, or fewer steps than `last_steps`.
    """
    if settings["steps"] < settings["last_steps"]:
        raise InputError(f"last_steps: {settings['last_steps']} of only {settings['steps']} steps")
    rows = []
    combinations = _combinations(settings)
    with console.progress("Training") as shown:
        total = len(combinations) * settings["seeds"]
        for done, counts in enumerate(_train(combinations, settings), 1):
            rows.append(_row(combinations[done - 1], counts, settings["last_steps"]))
            with (output / "runs.jsonl").open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            shown(done * settings["seeds"], total)
    binary_tree_figures.draw([row for row in rows if row["variant"] not in CONTROLS], output)
    return summary(rows)


def cells(settings: Mapping[str, Any]) -> list[Cell]:
    """The paper's cells and our own."""
    pairs = product(settings["prefix_lengths"], settings["r_neg"])
    paper = [Cell("anti-exploitation", r_neg, n) for n, r_neg in pairs]
    return paper + [Cell("anti-exploration", r_neg) for r_neg in settings["crowd_r_neg"]]


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


def _train(combinations: list[Combination], settings: Mapping[str, Any]) -> Any:
    """Yield (steps, seeds, 16) counts of each combination."""
    seeds, at_once = range(settings["seeds"]), settings["models_at_once"]
    parts = [seeds[i : i + at_once] for i in range(0, len(seeds), at_once)]
    draws = [toy_training.draw(part, settings["steps"]) for part in parts]
    kept = [toy_training.policies(settings["model"], part) for part in parts] if len(parts) == 1 else []
    for c in combinations:
        counts = []
        for i, part in enumerate(parts):
            start = kept[i] if kept else toy_training.policies(settings["model"], part)
            counts.append(toy_training.train(start, draws[i], c.cell, c.variant, c.learning_rate))
        yield np.concatenate(counts, axis=1)


def _row(combination: Combination, counts: NDArray[np.uint8], last: int) -> dict[str, Any]:
    """One line of runs.jsonl from the counts (steps, seeds, 16) of each `leaf XOR target`."""
    frequency = counts / GROUP
    final = frequency[-last:].mean(axis=0)
    points = len(frequency) // CURVE_STEPS
    curve = frequency[: points * CURVE_STEPS, :, 0].reshape(points, CURVE_STEPS, -1).mean(axis=1).T
    low, high = np.quantile(resampled_means(curve), [0.025, 0.975], axis=0)
    return {
        "cell": combination.cell.name,
        "mode": combination.cell.mode,
        "variant": combination.variant.name,
        "learning_rate": combination.learning_rate,
        "target": final[:, 0].round(4).tolist(),
        "good_others": final[:, combination.cell.rewards() == 0.7].sum(axis=1).round(4).tolist(),
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
    figures: dict[str, float] = {}
    for row in rows:
        name = f"{row['cell']} | lr {row['learning_rate']:g} | {row['variant']}"
        figures[name] = round(float(np.mean(row["target"])), 4)
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


def _ranking(title: str, rows: list[dict[str, Any]], baselines: tuple[str, ...]) -> dict[str, float]:
    ranked = rank_intervals(mean_table(rows), baselines)
    binary_tree_figures.show(title, ranked, baselines)
    return {key: value for r in ranked for key, value in r.figures(f"{title} | {r.name}").items()}
