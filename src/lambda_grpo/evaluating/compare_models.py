"""Several models on the same problems of one task: a table and a JSON file.

The models run one after the other with the same seed. For two models the difference is paired by problem, so
it can be clear even if their intervals overlap. Every model is checked before the first one runs.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from lambda_grpo import console, policy
from lambda_grpo.evaluating.completions import Sampling, encode
from lambda_grpo.evaluating.evaluation import (
    RIGHT_FROM,
    Answers,
    answer,
    check_pass_at,
    differences,
    summarise,
    usual_pass_at,
)
from lambda_grpo.tasks import Problem, Split, Task
from lambda_grpo.tasks.asking import Asked, PromptFormat, in_words
from lambda_grpo.tasks.task import draw_problems
from lambda_grpo.tasks.thinking_sums import CHARACTERS
from lambda_grpo.whole_files import write_json


@dataclass(frozen=True)
class Comparison:
    """What the models are compared on.

    Attributes:
        task: its name.
        problems: how many; a test split that holds fewer is taken whole.
        sampling: how they are answered; its seed also draws the problems.
        pass_at: the k of pass@k; None for 2, 4, 8, … and all samples.
        prompt_format: how a prompt becomes what a model reads.
    """

    task: str
    split: Split
    problems: int
    sampling: Sampling
    pass_at: Sequence[int] | None = None
    prompt_format: PromptFormat = field(default_factory=PromptFormat)


def compare(models: Sequence[str], task: Task, setting: Comparison, output: Path) -> None:
    """Evaluate the models, print the table, and write `output`.

    Raises:
        InputError: a k above the number of samples, an unreadable model, what `answer` refuses.
    """
    transformers_logging.disable_progress_bar()
    sampling = setting.sampling
    pass_at = usual_pass_at(sampling.samples) if setting.pass_at is None else setting.pass_at
    check_pass_at(pass_at, sampling.samples)
    problems = draw_problems(task, setting.split, setting.problems, sampling.seed)
    asked = {model: _asked(model, task, problems, setting.prompt_format) for model in models}
    timed = [_run(model, asked[model], problems, sampling) for model in models]
    answers = [each for each, _ in timed]
    how = {model: each.record(each.formatted(problems)) for model, each in asked.items()}
    evaluations = [summarise(each, pass_at) for each in answers]
    difference = differences(answers[0], answers[1], pass_at) if len(models) == 2 else {}
    columns = [
        {"model": model, "asked": how[model], **asdict(evaluation), "seconds": round(seconds, 1)}
        for model, evaluation, (_, seconds) in zip(models, evaluations, timed, strict=True)
    ]
    distinct = len({str(problem.prompt) for problem in problems})
    results = {
        **asdict(setting),
        "pass_at": list(pass_at),
        "problems": len(problems),
        "distinct_prompts": distinct,
        "right_from_reward": RIGHT_FROM,
        "models": columns,
        **({"difference": {name: asdict(each) for name, each in difference.items()}} if difference else {}),
        "versions": {name: version(name) for name in ("lambda-grpo", "torch", "transformers")},
        "rewards": [{"greedy": each.greedy.tolist(), "sampled": each.sampled.tolist()} for each in answers],
    }
    write_json(output, results)
    console.table(dict(zip(models, evaluations, strict=True)), {})
    if difference:
        console.differences("paired difference, second − first", difference)
    for line in (
        f"{setting.task}, {setting.split} split: {len(problems)} problems ({distinct} distinct "
        f"prompts), {sampling.samples} samples each; 95% intervals over problems",
        *console.asked({name: f"{in_words(own)}, {sampling.in_words()}" for name, own in how.items()}),
    ):
        console.CONSOLE.print(line, markup=False, highlight=False)


def _asked(model: str, task: Task, problems: Sequence[Problem], how: PromptFormat) -> Asked:
    """The task as the model is asked it; looks at all of the model but its weights.

    Raises:
        InputError: the model cannot be loaded, or cannot be asked so.
    """
    tokenizer: Any = policy.character_tokenizer(CHARACTERS)
    if model != policy.EMBEDDED:
        folder = console.policy_folder(model)
        _, tokenizer = policy.load_policy(folder, device_map="meta")
    asked = Asked(task, how, tokenizer)
    encode(tokenizer, asked.formatted(problems[:1])[0].prompt, how.chat_template_kwargs)
    return asked


def _run(model: str, task: Asked, problems: Sequence[Problem], sampling: Sampling) -> tuple[Answers, float]:
    """The answers of one model, and the seconds they took."""
    network, tokenizer = policy.load_policy(console.policy_folder(model))
    if torch.accelerator.is_available():
        network.to(torch.accelerator.current_accelerator())
    started = time.monotonic()
    with console.progress(f"Evaluating {model}") as shown:
        answers = answer(network, tokenizer, task, task.formatted(problems), sampling, shown)
    return answers, time.monotonic() - started
