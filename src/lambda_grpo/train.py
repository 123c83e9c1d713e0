"""`lambda-grpo train`: settings in, a trained policy and its run folder out."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback
from transformers.utils import logging as transformers_logging

from lambda_grpo import console, curves, policy, processes, runs, splits
from lambda_grpo.callbacks import CheckMetric, Log, Refresh, Report
from lambda_grpo.engines.trl import LambdaGRPOTrainer
from lambda_grpo.errors import InputError
from lambda_grpo.evaluation import Evaluation, Sampling
from lambda_grpo.options import Settings, TrainOptions
from lambda_grpo.splits import Splits
from lambda_grpo.tasks import Problem, Task, get_task
from lambda_grpo.tasks.base import score
from lambda_grpo.tasks.chat import Chat


@dataclass(frozen=True)
class Validated:
    """How validation went.

    Attributes:
        metric: what decides on the best, `eval_reward` unless set otherwise.
        best_step, best_value: of the best checkpoint, which is the policy in `model/`. The policy at the
            start is no checkpoint, even if it was better.
        start_value: of the policy at the start; nan if it was not validated.
        every, problems, problems_from: how often, on how many, from which of the task's splits.
    """

    metric: str
    best_step: int
    best_value: float
    start_value: float
    every: int
    problems: int
    problems_from: str

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.best_value:.3f} ({self.start_value:.3f} at the start), "
            f"on {self.problems} held-out problems of the {self.problems_from} split"
        )


@dataclass(frozen=True)
class Trained:
    """One run: where it is and how it went; `model_step` is the step of the policy in `model/`."""

    folder: Path
    before: Evaluation
    after: Evaluation
    steps: int
    model_step: int
    validated: Validated | None
    seconds: float


class _Trainer(LambdaGRPOTrainer):
    """Validates with random numbers of its own, always the same, so that it does not change training."""

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(self.args.seed + self.accelerator.process_index)
            return super().evaluate(*args, **kwargs)


def train(settings: Settings) -> Trained:
    """Train one policy.

    Raises:
        InputError: an unknown task, an unreadable model, an output folder that is in use, too few problems.
    """
    options, config = settings.options, settings.config
    folder = Path(config.output_dir)
    transformers_logging.disable_progress_bar()
    task = get_task(options.task)
    if options.system_prompt:
        task = Chat(task, options.system_prompt)
    if options.model != policy.EMBEDDED:
        model, tokenizer = policy.load_policy(options.model, **(config.model_init_kwargs or {}))
    processes.on_first(lambda: runs.check_unused(folder))
    problems = _draw(task, settings)
    processes.on_first(lambda: _begin(folder, settings))
    if options.model == policy.EMBEDDED:
        model, tokenizer = _embedded()
    if processes.is_first():
        tokenizer.save_pretrained(folder / "tokenizer")

    started = time.monotonic()
    trainer = _trainer(model, tokenizer, task, problems, settings)
    before = _evaluate(trainer, task, problems.test, "Evaluating before")
    report = Report([folder], folder / "report.html", folder / "tokenizer")
    with console.progress(f"Training with {config.credit}") as shown:
        trainer.add_callback(Log(folder, shown))
        trainer.add_callback(Refresh(report, options.report_every))
        trainer.train()
    after = _evaluate(trainer, task, problems.test, "Evaluating after")
    trainer.save_model(str(folder / "model"))
    seconds = round(time.monotonic() - started, 1)
    trained = Trained(folder, before, after, *_outcome(trainer, problems, options), seconds)
    if processes.is_first():
        _write(trained, settings)
        if config.save_rollouts:
            report.write()
    return trained


def _embedded() -> Any:
    with console.progress("Pre-training the embedded policy (once)") as shown, processes.first_goes_ahead():
        path = policy.embedded_policy(shown)
    return policy.load_policy(str(path))


def _begin(folder: Path, settings: Settings) -> None:
    runs.create_run_folder(folder)
    with runs.written_whole(folder / "config.yaml") as aside:
        aside.write_text(yaml.safe_dump(settings.explicit, sort_keys=False, allow_unicode=True))


def show(trained: Trained) -> None:
    """Print the table before → after."""
    title, note = "after", ""
    if trained.validated:
        title = f"after (step {trained.model_step})"
        note = f"best in validation: step {trained.validated.best_step}, {trained.validated}"
    console.table({"before": trained.before, title: trained.after}, {}, note)


def _draw(task: Task, settings: Settings) -> Splits:
    """The problems of a run with these settings.

    Raises:
        InputError: the task has too few.
    """
    options = settings.options
    wanted = splits.Sizes(
        options.train_problems,
        options.validation_problems if options.validate_every else 0,
        options.eval_problems,
    )
    problems = splits.draw(task, wanted, settings.config.seed)
    least = settings.config.generation_batch_size // settings.config.num_generations
    if len(problems.train) < least:
        raise InputError(
            f"train_problems: {len(problems.train)} problems are left to train on, and a step takes {least}: "
            "raise train_problems, or lower the batch size"
        )
    return problems


def _trainer(model: Any, tokenizer: Any, task: Task, problems: Splits, settings: Settings) -> _Trainer:
    train, validation = (
        [{"prompt": problem.prompt, "problem": i} for i, problem in enumerate(part, start)]
        for part, start in ((problems.train, 0), (problems.validation, len(problems.train)))
    )
    options = settings.options
    low_rank = policy.LowRank(options.lora_r, options.lora_alpha, options.lora_dropout, options.lora_target)
    trainer = _Trainer(
        model,
        _reward_function(task, [*problems.train, *problems.validation]),
        settings.config,
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(validation) if validation else None,
        processing_class=tokenizer,
        peft_config=policy.adapters(model, low_rank) if low_rank.rank else None,
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if validation:
        trainer.add_callback(CheckMetric())
        if tied := getattr(model, "all_tied_weights_keys", None):
            # Tells transformers that tied weights are not missing from the checkpoint it loads.
            model._keys_to_ignore_on_save = model._keys_to_ignore_on_save or list(tied)
    if options.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(options.early_stopping_patience))
    return trainer


def _outcome(trainer: _Trainer, problems: Splits, options: TrainOptions) -> tuple[int, int, Validated | None]:
    """Steps done, the step of the policy that the trainer holds now, and how validation went."""
    state, config = trainer.state, trainer.args
    if not problems.validation or state.best_global_step is None:
        return state.global_step, state.global_step, None
    metric = f"eval_{config.metric_for_best_model.removeprefix('eval_')}"
    start = [row[metric] for row in state.log_history if row["step"] == 0 and row.get(metric) is not None]
    validated = Validated(
        metric=metric,
        best_step=state.best_global_step,
        best_value=float(state.best_metric),
        start_value=float(start[0]) if start else float("nan"),
        every=options.validate_every,
        problems=len(problems.validation),
        problems_from=problems.validation_from,
    )
    loaded = config.load_best_model_at_end
    return state.global_step, validated.best_step if loaded else state.global_step, validated


def _write(trained: Trained, settings: Settings) -> None:
    results = {
        "settings": settings.explicit,
        "before": asdict(trained.before),
        "after": asdict(trained.after),
        "steps": trained.steps,
        "model_step": trained.model_step,
        "validation": asdict(trained.validated) if trained.validated else None,
        "seconds": trained.seconds,
        "versions": {name: version(name) for name in ("lambda-grpo", "torch", "transformers", "trl")},
    }
    runs.write_json(trained.folder / "results.json", results)
    curves.draw(trained.folder, best_step=trained.validated.best_step if trained.validated else None)


def _evaluate(trainer: _Trainer, task: Task, problems: Sequence[Problem], title: str) -> Evaluation:
    config = trainer.args
    sampling = Sampling(
        max_new_tokens=config.max_completion_length,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        batch_size=config.per_device_eval_batch_size,
    )
    model = trainer.accelerator.unwrap_model(trainer.model)
    with console.progress(title) as shown:
        return processes.evaluate(model, trainer.processing_class, task, problems, sampling, shown)


def _reward_function(task: Task, problems: Sequence[Problem]) -> Any:
    """The task's score as a TRL reward function; a task's traits are logged as `task/…`."""

    def reward(completions: list[Any], problem: list[int], log_metric: Any, **_: Any) -> list[float | None]:
        texts = [_text(completion) for completion in completions]
        traits = [task.traits(text) for text in texts]
        for name in traits[0]:
            log_metric(f"task/{name}", sum(trait[name] for trait in traits) / len(traits))
        return [score(task, problems[i], text) for i, text in zip(problem, texts, strict=True)]

    return reward


def _text(completion: Any) -> str:
    """A completion's text; of a chat, what the assistant said."""
    if isinstance(completion, str):
        return completion
    return "\n".join(turn["content"] or "" for turn in completion if turn["role"] == "assistant")
