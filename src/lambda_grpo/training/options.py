"""What can be set beyond `LambdaGRPOConfig`, what it stands for in TRL, and which settings fit together.

Validation is TRL's own evaluation: `validate_every` sets the fields that it stands for (`implied`), unless
recipe or flags set them.
"""

import copy
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lambda_grpo import policy
from lambda_grpo.credit import get_credit
from lambda_grpo.engines.trl import LambdaGRPOConfig
from lambda_grpo.errors import InputError
from lambda_grpo.training import asking_settings, precision


@dataclass
class TrainOptions:
    """What `train` adds to `LambdaGRPOConfig`."""

    model: str = field(
        default=policy.EMBEDDED,
        metadata={
            "help": "Local folder, GGUF file, Hub id, smollm2-135m, or `embedded` for the policy made here."
        },
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Precision of the weights in training: float32, bfloat16, float16, or auto for the "
            "checkpoint's."
        },
    )
    task: str = field(default="thinking-sums", metadata={"help": "Name of the task."})
    chat: str = field(
        default="auto",
        metadata={
            "help": "Ask a prompt that is text as the user's message: on, off, or auto: where the tokenizer "
            "has a chat template, unless the task says that its prompts are texts to be continued."
        },
    )
    system_prompt: str = field(default="", metadata={"help": "The chat's system message; empty for none."})
    lora_r: int = field(
        default=0, metadata={"help": "Train low-rank adapters of this rank; 0 for all weights."}
    )
    lora_alpha: int = field(default=16, metadata={"help": "The adapters are scaled by lora_alpha / lora_r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of the adapters' input."})
    lora_target: str = field(
        default="all-linear",
        metadata={"help": "Modules that get adapters: all-linear, or names such as q_proj,v_proj."},
    )
    train_problems: int = field(default=10_000, metadata={"help": "Size of the training set."})
    eval_problems: int = field(default=512, metadata={"help": "Test problems, before and after."})
    validate_every: int = field(
        default=0,
        metadata={"help": "Validate every N steps and keep the best checkpoint; 0 for never."},
    )
    validation_problems: int = field(default=64, metadata={"help": "Held-out problems to validate on."})
    early_stopping_patience: int = field(
        default=0,
        metadata={"help": "Stop after N validations in a row without a new best; 0 for never."},
    )
    compare: str = field(
        default="",
        metadata={"help": "Credits to train with from the same start, such as grpo,lambda_grpo."},
    )
    report_every: int = field(
        default=0, metadata={"help": "Refresh report.html every N steps; 0 for at the end only."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Start over: remove the run that lies in output_dir."}
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Two steps with a tiny random model, offline: do the settings fit together?"},
    )


@dataclass(frozen=True)
class TrainSettings:
    """One run's settings, resolved: defaults ← recipe ← flags."""

    options: TrainOptions
    config: LambdaGRPOConfig
    explicit: dict[str, Any]  # what recipe and flags set: a recipe that repeats the run

    @property
    def credits(self) -> list[str]:
        """The credits to compare."""
        return [name.strip() for name in self.options.compare.split(",")]

    def for_credit(self, credit: str) -> "TrainSettings":
        """One run of a comparison, in a sub-folder; of `credit_kwargs` the credit gets those it takes.

        Raises:
            InputError: as `LambdaGRPOConfig`, of the credit.
        """
        config = copy.copy(self.config)  # dataclasses.replace would derive again what is derived already
        config.credit = credit
        config.output_dir = str(Path(config.output_dir) / folder_name(credit))
        given: Any = config.credit_kwargs or {}
        config.credit_kwargs = {key: given[key] for key in given if _takes(credit, key)}
        config.check_credit()
        changed = {"credit": credit, "output_dir": config.output_dir}
        if given:
            changed |= {"credit_kwargs": config.credit_kwargs}
        explicit = {name: value for name, value in self.explicit.items() if name != "compare"}
        return TrainSettings(dataclasses.replace(self.options, compare=""), config, explicit | changed)


def implied(options: TrainOptions, config: LambdaGRPOConfig) -> Mapping[str, Any]:
    """What `validate_every` stands for.

    TRL averages over batches, and fills the last of all processes with problems that it repeats. So batches
    hold whole groups, and are of the size that repeats fewest problems: the largest such that is no larger
    than a batch for training (of at least one group).
    """
    group = config.num_generations_eval or config.num_generations
    count, processes = options.validation_problems, config.world_size
    most = max(1, config.per_device_train_batch_size // group)
    groups = min(range(1, most + 1), key=lambda groups: (-count % (groups * processes), -groups))
    return {
        "eval_strategy": "steps",
        "eval_steps": options.validate_every,
        "eval_on_start": True,
        "per_device_eval_batch_size": group * groups,
        "save_strategy": "steps",  # the last one is where a killed run goes on
        "save_steps": options.validate_every,
        "save_total_limit": 1,  # beside the best
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_reward",
    }


def check(options: TrainOptions, config: LambdaGRPOConfig) -> None:
    for name, least in (
        ("train_problems", 1),
        ("eval_problems", 1),
        ("validate_every", 0),
        ("validation_problems", 1),
        ("early_stopping_patience", 0),
        ("report_every", 0),
        ("lora_r", 0),
        ("lora_alpha", 1),
    ):
        if getattr(options, name) < least:
            raise InputError(f"{name}: expected at least {least}, got {getattr(options, name)}")
    if config.max_steps < -1:
        raise InputError(
            f"max_steps: got {config.max_steps}, expected at least 1, or -1 for as many as num_train_epochs "
            "give"
        )
    if config.max_steps == 0 or (config.max_steps < 0 and config.num_train_epochs <= 0):
        name = "num_train_epochs" if config.max_steps else "max_steps"
        raise InputError(
            f"{name}: got {getattr(config, name):g}, which trains nothing: `lambda-grpo eval` answers "
            "problems without training"
        )
    precision.check(options.dtype, config.fp16)
    if not 0 <= options.lora_dropout < 1:
        raise InputError(f"lora_dropout: expected at least 0 and below 1, got {options.lora_dropout}")
    if not isinstance(options.compare, str):
        raise InputError(f"compare: expected names with commas between them, got {options.compare!r}")
    asking_settings.prompt_format(options, config)
    asking_settings.sampling(config)
    if options.validate_every and config.eval_steps not in (None, options.validate_every):
        raise InputError(
            f"validate_every is {options.validate_every}, but eval_steps is {config.eval_steps}: leave that "
            "away"
        )
    if not options.validate_every:
        if options.early_stopping_patience:
            raise InputError("early_stopping_patience needs validation: set validate_every too")
        if config.eval_strategy != "no" or config.eval_on_start or config.load_best_model_at_end:
            raise InputError(
                "eval_strategy, eval_on_start and load_best_model_at_end need validation problems: set "
                "validate_every, which stands for them"
            )
    if options.report_every and not config.save_rollouts:
        raise InputError("report_every needs the rollouts: leave save_rollouts on")


def check_best_is_kept(options: TrainOptions, config: LambdaGRPOConfig) -> None:
    """Transformers takes the best of the *saved* checkpoints; so the best must be among them."""
    every = options.validate_every
    if config.eval_strategy != "steps":
        raise InputError(
            f"validate_every is {every}, but eval_strategy is {config.eval_strategy.value!r}: leave that away"
        )
    if config.save_strategy == "steps" and config.save_steps != every:
        raise InputError(
            f"save_steps is {config.save_steps}, so the best of the validations every {every} steps might "
            f'not be saved: set save_steps to {every}, or save_strategy to "best"'
        )


def check_credits(settings: TrainSettings) -> None:
    """Of a comparison: at least two different credits, all known, and every parameter taken by one."""
    if not settings.options.compare:
        return
    names = settings.credits
    for name in names:
        get_credit(name)
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(
            f"compare: expected at least two different credits, such as grpo,lambda_grpo, got "
            f"{settings.options.compare!r}"
        )
    given: Any = settings.config.credit_kwargs or {}
    for key in given:
        if not any(_takes(name, key) for name in names):
            raise InputError(f"credit_kwargs: none of {', '.join(names)} takes a parameter {key!r}")
    for name in names:
        settings.for_credit(name)


def folder_name(name: str) -> str:
    """The name of a credit as part of a path: `my_file.py:mine` becomes `my_file-py-mine`."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name)


def _takes(credit: str, parameter: str) -> bool:
    try:
        get_credit(credit, {parameter: None})
    except InputError:
        return False
    return True
