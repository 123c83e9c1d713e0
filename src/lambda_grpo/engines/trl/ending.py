"""Further tokens that end a completion, beside the model's own end-of-sequence tokens."""

from collections.abc import Sequence
from typing import Any


def end_completions_at(trainer: Any, token_ids: Sequence[int]) -> None:
    """Let generation end at these tokens too, in training and validation; such a completion is not cut off.

    TRL reads the model's end tokens once, into `eos_token_ids` and the settings for `generate`. With vLLM it
    was never tried.

    Args:
        trainer: a `GRPOTrainer`.
    """
    if not token_ids:
        return
    trainer.eos_token_ids = list(dict.fromkeys([*trainer.eos_token_ids, *token_ids]))
    if trainer.use_vllm:
        vllm = trainer.vllm_generation
        vllm.generation_kwargs = {**vllm.generation_kwargs, "stop_token_ids": list(token_ids)}
        return
    trainer.generation_kwargs["eos_token_id"] = trainer.eos_token_ids
    trainer.generation_config.eos_token_id = trainer.eos_token_ids
