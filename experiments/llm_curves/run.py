"""llm_curves: validation accuracy of a real language model during training, credit beside credit.

runs.jsonl     one line per run: its curve, the overlap of its rollouts step by step, and its credit's
               gradient beside GRPO's on the first batch; an experiment that was stopped goes on with
               `--output` and the same folder, and `--minutes` ends it between two runs
results.json   peak, step of the peak, mean over the curve, end, with intervals; paired differences from grpo
tables.md      the same as tables, with the pilots and each run
curves.png     accuracy against steps and against seconds; differences of the peaks
overlap.png    overlap over training
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging as transformers_logging

from experiments.common import resumable_runs
from experiments.common.arms import credit_of
from experiments.curves import curve_differences
from experiments.llm_curves import one_run, tables, what_lambda_changes
from experiments.llm_curves.worked_start import WORKED, worked_start
from lambda_grpo import console
from lambda_grpo.credit import try_credit
from lambda_grpo.tasks import get_task

RESUMES_FROM = resumable_runs.FILE
PLAN = ("tasks", "credits", "seeds", "pilot_rates", "pilot_seed", "learning_rate")
"""The settings that say which runs are wanted; all runs share the others."""


def run(settings: Mapping[str, Any], output: Path) -> dict[str, float]:
    """Train the pilots and the paired runs that are not in runs.jsonl yet; draw and print; the figures.

    Raises:
        InputError: an unknown task or credit, or runs.jsonl holds runs with other settings.
    """
    for task, arm in product(settings["tasks"], settings["credits"]):
        get_task(task)
        try_credit(*credit_of(arm))
    transformers_logging.disable_progress_bar()
    named = settings["model"]
    model = str(worked_start()) if named == WORKED else console.policy_folder(named)
    shared = {key: value for key, value in settings.items() if key not in PLAN}
    if named == WORKED:
        shared["model"] = Path(model).name  # another recipe is another start

    def complete(wanted: Sequence[Mapping[str, Any]], title: str) -> list[dict[str, Any]]:
        if not wanted:
            return []
        with console.progress(title) as shown:
            return resumable_runs.complete(
                output, wanted, shared, lambda i: one_run.train(shared, model, **wanted[i]), shown
            )

    piloted = complete(pilots(settings), "Pilots")
    rates = best_rates(piloted, len(settings["pilot_rates"]))
    rows = complete(paired_runs(settings, rates), "Runs")
    compared = curve_differences.compare(rows)
    tables.write(piloted, rates, rows, compared, output / tables.FILE)
    if not rows:
        return {}
    curve_differences.show(compared)
    curve_differences.draw(rows, compared, output / "curves.png")
    what_lambda_changes.draw(rows, output / "overlap.png")
    return curve_differences.flat(compared) | what_lambda_changes.figures(rows)


def pilots(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs that choose a rate for each task and credit, with a seed that no paired run has."""
    plan = product(settings["tasks"], settings["credits"], settings["pilot_rates"])
    return [
        {"seed": settings["pilot_seed"], "task": task, "credit": credit, "learning_rate": float(rate)}
        for task, credit, rate in plan
    ]


def best_rates(piloted: Sequence[Mapping[str, Any]], count: int) -> dict[tuple[str, str], float]:
    """(Task, credit) → the rate with the highest mean over the pilot's curve; the lowest of equals.

    Without those that have fewer than `count` pilots so far.
    """
    rows = sorted(piloted, key=lambda row: (-np.mean(row["accuracy"]), row["learning_rate"]))
    best = {(row["task"], row["credit"]): row["learning_rate"] for row in reversed(rows)}
    done = Counter((row["task"], row["credit"]) for row in rows)
    return {pair: rate for pair, rate in best.items() if done[pair] == count}


def paired_runs(settings: Mapping[str, Any], rates: Mapping[tuple[str, str], float]) -> list[dict[str, Any]]:
    """The runs that are compared. Credits of one task and seed are neighbours, so pairs come early.

    A credit whose pilots are not finished has no rate, and so no run, yet.
    """
    plan = product(settings["tasks"], range(settings["seeds"]), settings["credits"])
    return [
        {
            "seed": seed,
            "task": task,
            "credit": credit,
            "learning_rate": rates.get((task, credit), settings["learning_rate"]),
        }
        for task, seed, credit in plan
        if (task, credit) in rates or not settings["pilot_rates"]
    ]
