"""branching: chains against forked completions, at equal sampled tokens and at equal seconds.

Every run of a task starts from the same policy; the seed draws problems and completions.

runs.jsonl     one line per training run: validation accuracy by step, sampled tokens and processor seconds;
               one line per task with the noise of the gradient. An experiment that was stopped goes on with
               `--output` and the same folder
results.json   means over tokens and over seconds, end, with intervals; paired differences from chains with
               grpo; noise, scale and direction of the gradients
curves.png     accuracy against sampled tokens and against seconds; differences
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from experiments.branching import arm_differences, gradient_noise, training_run
from experiments.branching.setups import Arm, Setup, setups
from experiments.common import resumable_runs
from experiments.common.estimates import short
from lambda_grpo import console

RESUMES_FROM = resumable_runs.FILE
_NOT_SHARED = ("arms", "seeds", "groups")


def run(settings: Mapping[str, Any], output: Path) -> dict[str, float]:
    """Train and measure what is not in runs.jsonl yet; draw, print and write; the figures.

    Raises:
        InputError: an unknown task, arm or credit, lists of different lengths, or runs.jsonl holds runs with
            other settings.
    """
    by_name = {setup.task: setup for setup in setups(settings)}
    shared = {key: value for key, value in settings.items() if key not in _NOT_SHARED}
    arms = {name: Arm.of(name) for name in settings["arms"]}
    transformers_logging.disable_progress_bar()
    wanted = training_runs(list(by_name.values()), list(arms))

    def train(i: int) -> dict[str, Any]:
        identity = wanted[i]
        return training_run.train(by_name[identity["task"]], arms[identity["arm"]], identity["seed"])

    measured: list[dict[str, Any]] = [
        {"gradient_of": name, "groups": setup.groups} for name, setup in by_name.items() if setup.groups
    ]
    noises = resumable_runs.complete(
        output,
        measured,
        shared,
        lambda i: gradient_noise.measure(by_name[measured[i]["gradient_of"]]),
        _quiet,
    )
    with console.progress("Runs") as shown:
        rows = resumable_runs.complete(output, wanted, shared, train, shown)
    if rows:
        arm_differences.show(rows)
        arm_differences.draw(rows, output / "curves.png")
    figures = arm_differences.figures(rows)
    of_tasks = {short(row.pop("gradient_of")): row for row in map(dict, noises)}
    if of_tasks:
        gradient_noise.show(of_tasks)
    for task, found in of_tasks.items():
        figures |= {f"{task} | {name}": value for name, value in found.items()}
    return figures


def training_runs(tasks: list[Setup], arms: list[str]) -> list[dict[str, Any]]:
    """The identities of all runs, seed by seed, so that what is done is done for all arms."""
    most = max(setup.seeds for setup in tasks)
    return [
        {"task": setup.task, "seed": seed, "arm": arm}
        for seed in range(most)
        for setup in tasks
        if seed < setup.seeds
        for arm in arms
    ]


def _quiet(done: int, wanted: int) -> None:
    """The measurement has a progress bar of its own."""
