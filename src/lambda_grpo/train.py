"""`lambda-grpo train`: settings in, a trained policy and its run folder out."""

import dataclasses
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from transformers import HfArgumentParser, PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils import logging as transformers_logging

from lambda_grpo import console, curves, policy, runs
from lambda_grpo.engines.trl import LambdaGRPOConfig, LambdaGRPOTrainer
from lambda_grpo.errors import InputError, unknown_name
from lambda_grpo.evaluation import Evaluation, Sampling, evaluate
from lambda_grpo.tasks import Problem, Task, get_task

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "thinking-sums"


@dataclass
class TrainOptions:
    """What `train` adds to `LambdaGRPOConfig`."""

    model: str = field(
        default=policy.EMBEDDED,
        metadata={"help": "Local folder, Hub id, or `embedded` for the policy made on this machine."},
    )
    task: str = field(default="thinking-sums", metadata={"help": "Name of the task."})
    train_problems: int = field(default=10_000, metadata={"help": "Size of the training set."})
    eval_problems: int = field(default=512, metadata={"help": "Test problems, before and after."})


@dataclass(frozen=True)
class Settings:
    """One run's settings, resolved: defaults ← recipe ← flags."""

    options: TrainOptions
    config: LambdaGRPOConfig
    explicit: dict[str, Any]  # what recipe and flags set: a recipe that repeats the run


class _Parser(HfArgumentParser):
    """One flag per field of `TrainOptions` and `LambdaGRPOConfig`."""

    def __init__(self) -> None:
        super().__init__([TrainOptions, LambdaGRPOConfig], prog="lambda-grpo train", allow_abbrev=False)

    def error(self, message: str) -> Any:
        raise InputError(message)


def resolve(recipe: str, flags: Sequence[str]) -> Settings:
    """Read the recipe (a path, or the name of one of ours) and lay the flags over it.

    Raises:
        InputError: no such recipe, an unknown key or flag (with the nearest miss), a value that does not fit.
    """
    parser = _Parser()
    if "--help-all" in flags:
        parser.print_help()
        raise SystemExit(0)
    names = [f.name for cls in (TrainOptions, LambdaGRPOConfig) for f in dataclasses.fields(cls) if f.init]
    content = _read_recipe(recipe)
    for key in content:
        if key not in names:
            raise unknown_name(f"key in recipe {recipe!r}:", key, names)
    flagged = [flag[2:].split("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")]
    flagged = [name if name in names else name.removeprefix("no_") for name in flagged]
    for name in flagged:
        if name not in names:
            raise unknown_name("flag", f"--{name}", [f"--{known}" for known in names])

    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    parser.set_defaults(
        use_cpu=on_cpu, bf16=not on_cpu, report_to="none", logging_steps=1, save_rollouts=True
    )
    parser.set_defaults(**content)
    try:
        options, config, rest = parser.parse_args_into_dataclasses(
            list(flags), return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, TypeError, ImportError) as error:
        raise error if isinstance(error, InputError) else InputError(f"settings: {error}") from error
    if rest:
        raise InputError(f"unexpected argument {rest[0]!r}: settings are given as --name value")
    if "output_dir" not in {*content, *flagged}:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        config.output_dir = f"runs/{re.sub('[^a-z0-9]+', '-', options.task)}-{config.credit}-{stamp}"
    values = asdict(options) | config.to_dict()
    explicit = {name: values[name] for name in dict.fromkeys([*content, *flagged, "output_dir"])}
    return Settings(options, config, explicit)


def _read_recipe(recipe: str) -> dict[str, Any]:
    path = Path(recipe)
    if not path.suffix:
        path = RECIPES / f"{recipe}.yaml"
        if not path.exists():
            raise unknown_name("recipe", recipe, [known.stem for known in RECIPES.glob("*.yaml")])
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"recipe {str(path)!r}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"recipe {str(path)!r}: expected `key: value` lines, got {type(content).__name__}")
    return content


def train(settings: Settings) -> Path:
    """Train one policy; return its run folder.

    Raises:
        InputError: an unknown task, an unreadable model, an output folder that is in use.
    """
    options, config = settings.options, settings.config
    folder = Path(config.output_dir)
    transformers_logging.disable_progress_bar()
    task = get_task(options.task)
    if options.model != policy.EMBEDDED:
        model, tokenizer = policy.load_policy(options.model, **(config.model_init_kwargs or {}))
    runs.create_run_folder(folder)
    with runs.written_whole(folder / "config.yaml") as aside:
        aside.write_text(yaml.safe_dump(settings.explicit, sort_keys=False, allow_unicode=True))
    if options.model == policy.EMBEDDED:
        with console.progress("Pre-training the embedded policy (once)") as shown:
            path = policy.embedded_policy(shown)
        model, tokenizer = policy.load_policy(str(path))

    problems = task.problems("train", options.train_problems, config.seed)
    trainer = LambdaGRPOTrainer(
        model,
        _reward_function(task, problems),
        config,
        train_dataset=Dataset.from_list(
            [{"prompt": problem.prompt, "problem": i} for i, problem in enumerate(problems)]
        ),
        processing_class=tokenizer,
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    started = time.monotonic()
    before = _evaluate(trainer, task, options, "Evaluating before")
    with console.progress(f"Training with {config.credit}") as shown:
        trainer.add_callback(_Log(folder, shown))
        trainer.train()
    after = _evaluate(trainer, task, options, "Evaluating after")
    trainer.save_model(str(folder / "model"))
    results = {
        "settings": settings.explicit,
        "before": asdict(before),
        "after": asdict(after),
        "seconds": round(time.monotonic() - started, 1),
        "versions": {name: version(name) for name in ("lambda-grpo", "torch", "transformers", "trl")},
    }
    runs.write_json(folder / "results.json", results)
    curves.draw(folder)
    console.before_after(before, after)
    return folder


def _evaluate(trainer: LambdaGRPOTrainer, task: Task, options: TrainOptions, title: str) -> Evaluation:
    config = trainer.args
    sampling = Sampling(
        max_new_tokens=config.max_completion_length,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        batch_size=config.per_device_eval_batch_size,
    )
    problems = task.problems("test", options.eval_problems, config.seed)
    model = trainer.accelerator.unwrap_model(trainer.model)
    with console.progress(title) as shown:
        return evaluate(model, trainer.processing_class, task, problems, sampling, shown)


def _reward_function(task: Task, problems: Sequence[Problem]) -> Any:
    """The task's score as a TRL reward function; a task's traits are logged as `task/…`."""

    def reward(completions: list[Any], problem: list[int], log_metric: Any, **_: Any) -> list[float | None]:
        texts = [_text(completion) for completion in completions]
        traits = [task.traits(text) for text in texts]
        for name in traits[0]:
            log_metric(f"task/{name}", sum(trait[name] for trait in traits) / len(traits))
        return [task.score(problems[i], text) for i, text in zip(problem, texts, strict=True)]

    return reward


def _text(completion: Any) -> str:
    """A completion's text; of a chat, what the assistant said."""
    if isinstance(completion, str):
        return completion
    return "\n".join(turn["content"] or "" for turn in completion if turn["role"] == "assistant")


class _Log(TrainerCallback):
    """Writes metrics.jsonl and moves the progress bar."""

    def __init__(self, folder: Path, shown: console.Shown) -> None:
        self.folder, self.shown = folder, shown

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and "loss" in logs:
            runs.append_metrics(self.folder, {"step": state.global_step, **logs})

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        rewards = [row["reward"] for row in state.log_history[-1:] if "reward" in row]
        self.shown(state.global_step, state.max_steps, *(f"reward {r:.2f}" for r in rewards))
