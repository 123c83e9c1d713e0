"""`lambda-grpo train`: settings in, a trained policy and its run folder out."""

import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, set_seed
from transformers.utils import logging as transformers_logging

from lambda_grpo import console, policy
from lambda_grpo.engines.trl import LambdaGRPOTrainer, checkpoint_folders
from lambda_grpo.engines.trl.ending import end_completions_at
from lambda_grpo.errors import InputError
from lambda_grpo.evaluating.completions import Sampling, encode
from lambda_grpo.evaluating.evaluation import Evaluation
from lambda_grpo.tasks import Problem, Task, get_task
from lambda_grpo.tasks.asking import Asked
from lambda_grpo.tasks.task import score
from lambda_grpo.tasks.thinking_sums import CHARACTERS
from lambda_grpo.training import (
    asking_settings,
    curve_picture,
    multi_rank,
    precision,
    results,
    run_folder,
    splits,
    start_or_resume,
)
from lambda_grpo.training.callbacks import CheckMetric, Log, Refresh, ReportWriter
from lambda_grpo.training.options import TrainOptions, TrainSettings
from lambda_grpo.training.results import Trained, Validated
from lambda_grpo.training.splits import Splits
from lambda_grpo.whole_files import folder_written_whole, write_yaml


class _Trainer(LambdaGRPOTrainer):
    """Validates with random numbers of its own, always the same, so that it does not change training."""

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        python, numpy = random.getstate(), np.random.get_state()
        with torch.random.fork_rng():
            set_seed(self.args.seed + self.accelerator.process_index)
            try:
                return super().evaluate(*args, **kwargs)
            finally:
                random.setstate(python)
                np.random.set_state(numpy)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        run_folder.sync_log(
            Path(self.args.output_dir)
        )  # what the checkpoint builds on is on the disk before it
        super()._save_checkpoint(*args, **kwargs)


def train(settings: TrainSettings, *, alone: bool = True) -> Trained:
    """Train one policy, or go on with the unfinished run in the folder; of a finished one, say how it went.

    Args:
        alone: false for a run of a comparison, which says itself how to go on with all of its runs.

    Raises:
        InputError: an unknown task, an unreadable model, an output folder that holds something else or is in
            use, too few problems.
        LambdaGRPOError: the run folder cannot be written to.
    """
    options, config = settings.options, settings.config
    run = start_or_resume.WantedRun(Path(config.output_dir), settings.explicit, options.overwrite)
    if earlier := multi_rank.on_first(lambda: _finished(run)):
        console.run_finished(run.folder)
        return earlier
    transformers_logging.disable_progress_bar()
    task = get_task(options.task)
    how = {"trust_remote_code": config.trust_remote_code}
    how |= precision.loading(options.dtype, config.model_init_kwargs)
    loaded = None
    if options.model != policy.EMBEDDED:
        multi_rank.on_first(lambda: console.policy_folder(options.model))
        loaded = policy.load_policy(options.model, **how)
    tokenizer = loaded[1] if loaded else policy.character_tokenizer(CHARACTERS)
    asked = Asked(task, asking_settings.prompt_format(options, config), tokenizer)
    problems = _draw(asked, settings)
    encode(tokenizer, problems.test[0].prompt, asked.chat_template_kwargs)
    with start_or_resume.opened(run) as checkpoint:
        multi_rank.on_first(lambda: _begin(run, checkpoint, alone))
        model, tokenizer = loaded or _embedded(how["dtype"])
        if multi_rank.is_first():
            with folder_written_whole(run.folder / "tokenizer") as aside:
                tokenizer.save_pretrained(aside)
        trainer = _trainer(model, tokenizer, asked, problems, settings)
        return _run(trainer, asked, problems, settings, checkpoint)


def _finished(run: start_or_resume.WantedRun) -> Trained | None:
    start_or_resume.check(run)
    return results.read(run.folder) if start_or_resume.finished(run) else None


def _begin(run: start_or_resume.WantedRun, checkpoint: Path | None, alone: bool) -> None:
    write_yaml(run.folder / "config.yaml", run.settings)
    if checkpoint:
        console.run_goes_on(run.folder, checkpoint_folders.step_of(checkpoint))
    elif alone:
        console.run_starts(run.folder, multi_rank.count())


def _embedded(dtype: Any) -> tuple[Any, Any]:
    with multi_rank.first_goes_ahead():
        path = console.embedded_policy()
    return policy.load_policy(str(path), dtype=dtype)


def _run(
    trainer: _Trainer, task: Asked, problems: Splits, settings: TrainSettings, checkpoint: Path | None
) -> Trained:
    """Evaluate, train, evaluate, and write what came of it."""
    multi_rank.check_sharding(trainer.accelerator)
    started, folder = time.monotonic(), Path(settings.config.output_dir)
    sampling = asking_settings.sampling(settings.config)
    before = multi_rank.on_first(lambda: results.read_before(folder))
    before = before or _evaluate(trainer, task, problems.test, sampling, "Evaluating before")
    report = ReportWriter([folder], folder / "report.html", folder / "tokenizer")
    main = trainer.is_world_process_zero()
    if main:
        results.write_before(folder, before)
    with console.progress(f"Training with {settings.config.credit}") as shown:
        trainer.add_callback(Log(folder, shown))
        trainer.add_callback(Refresh(report, settings.options.report_every))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    after = _evaluate(trainer, task, problems.test, sampling, "Evaluating after")
    written = folder_written_whole(folder / "model") if main else nullcontext(folder / ".model.partial")
    with written as aside:  # all processes take part where each holds a share of the weights
        trainer.save_model(str(aside))
        trainer.accelerator.wait_for_everyone()
    seconds = time.monotonic() - started
    resumed_from = checkpoint_folders.step_of(checkpoint) if checkpoint else None
    outcome = _outcome(trainer, problems, settings.options)
    asked = asking_settings.record(task, problems.test, sampling)
    trained = Trained(folder, before, after, *outcome, round(seconds, 1), resumed_from, asked)
    if main:
        curve_picture.draw(folder, best_step=trained.validated.best_step if trained.validated else None)
        if settings.config.save_rollouts:
            report.write()
        results.write(trained, settings.explicit)
    return trained


def show(trained: Trained) -> None:
    """Print the table before → after."""
    title, note = "after", ""
    if trained.validated:
        title = f"after (step {trained.model_step})"
        note = f"best in validation: step {trained.validated.best_step}, {trained.validated}\n"
    note += asking_settings.in_words(trained.asked)
    console.table({"before": trained.before, title: trained.after}, {}, note)


def _draw(task: Task, settings: TrainSettings) -> Splits:
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


def _trainer(model: Any, tokenizer: Any, task: Asked, problems: Splits, settings: TrainSettings) -> _Trainer:
    train, validation = (
        rows(part, start) for part, start in ((problems.train, 0), (problems.validation, len(problems.train)))
    )
    options = settings.options
    low_rank = policy.LowRank(options.lora_r, options.lora_alpha, options.lora_dropout, options.lora_target)
    trainer = _Trainer(
        model,
        reward_function(task, [*problems.train, *problems.validation]),
        asking_settings.for_trl(settings.config, model),
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(validation) if validation else None,
        processing_class=tokenizer,
        peft_config=policy.adapters(model, low_rank) if low_rank.rank else None,
    )
    end_completions_at(trainer, task.end_tokens)
    if said := precision.warning(trainer.model, settings.config):
        console.CONSOLE.print(said, markup=False, highlight=False)
    for callback in list(trainer.callback_handler.callbacks):  # the progress bar and the log are ours
        if type(callback).__name__ in ("PrinterCallback", "ProgressCallback", "NotebookProgressCallback"):
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


def _evaluate(
    trainer: _Trainer, task: Asked, problems: Sequence[Problem], sampling: Sampling, title: str
) -> Evaluation:
    model = trainer.accelerator.unwrap_model(trainer.model)
    with console.progress(title) as shown:
        return multi_rank.evaluate(model, trainer.processing_class, task, problems, sampling, shown)


def rows(problems: Sequence[Problem], start: int = 0) -> list[dict[str, Any]]:
    """What TRL trains on: each problem's prompt, and its number, from `start` on, for `reward_function`."""
    return [{"prompt": problem.prompt, "problem": i} for i, problem in enumerate(problems, start)]


def reward_function(task: Task, problems: Sequence[Problem]) -> Any:
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
