"""What the settings of a run say about how the policy is asked: one reading, for training and for the table.

TRL asks in training and validation, and `evaluating` for the table before → after. The table draws with what
`sampling` reads. `for_trl` tells TRL what it would not do by itself.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from lambda_grpo.engines.trl import LambdaGRPOConfig
from lambda_grpo.errors import InputError
from lambda_grpo.evaluating.completions import Sampling
from lambda_grpo.sampling.plain import own_settings_off
from lambda_grpo.tasks import Problem, asking
from lambda_grpo.tasks.asking import Asked, PromptFormat


def prompt_format(options: Any, config: LambdaGRPOConfig) -> PromptFormat:
    """How prompts become what the policy reads.

    Raises:
        InputError: settings that contradict each other, or that no chat template reads.
    """
    kwargs: Any = config.chat_template_kwargs or {}
    return PromptFormat(options.chat, options.system_prompt, kwargs)


def sampling(config: LambdaGRPOConfig) -> Sampling:
    """How completions are drawn.

    Raises:
        InputError: a number out of its range; `generation_kwargs` that only TRL or only the table would heed.
    """
    kwargs: Any = config.generation_kwargs or {}
    if kwargs and config.use_vllm:
        raise InputError(
            "generation_kwargs: vLLM would read them in training, and transformers for the table before → "
            "after, and their names differ: leave them away, or use_vllm"
        )
    return Sampling(
        max_completion_length=config.max_completion_length,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k or 0,
        min_p=config.min_p or 0.0,
        repetition_penalty=config.repetition_penalty,
        generation_kwargs=kwargs,
        batch_size=config.per_device_eval_batch_size,
    )


def for_trl(config: LambdaGRPOConfig, model: Any) -> LambdaGRPOConfig:
    """The settings, with the model's own generation settings switched off that TRL leaves on.

    TRL tells `generate` its own settings, and transformers fills in the others from the model's.
    """
    told = {"repetition_penalty"} | ({"min_p"} if config.min_p is not None else set())
    off = {name: none for name, none in own_settings_off(model).items() if name not in told}
    if config.top_k is None:  # transformers would take 50
        off["top_k"] = 0
    if not off or config.use_vllm:
        return config
    config = copy.copy(config)  # dataclasses.replace would derive again what is derived already
    given: Any = config.generation_kwargs or {}
    config.generation_kwargs = off | given
    return config


def record(task: Asked, problems: Sequence[Problem], drawn: Sampling) -> dict[str, Any]:
    """How these problems were asked, for results.json."""
    return task.record(problems) | {"sampling": drawn.record()}


def in_words(record: Mapping[str, Any]) -> str:
    """The same for the line below the table."""
    words = f"{asking.in_words(record)}, {Sampling(**record['sampling']).in_words()}"
    return words[:1].upper() + words[1:]
