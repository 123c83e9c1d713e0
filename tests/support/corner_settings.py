"""Settings of TRL that are easy to get wrong, each with what its test needs."""

import copy
from typing import Any

from tiny_trainers import (
    TOKENIZER,
    reward,
)


def right_padding() -> Any:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.padding_side = "right"
    return tokenizer


def pad_equal_to_eos() -> Any:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def often_unscorable(completions: list[str], **_: Any) -> list[float | None]:
    return [
        None if text.count("a") % 2 else value
        for text, value in zip(completions, reward(completions), strict=True)
    ]


# Settings of the trainer, or what it is given; pairs of things that could get in each other's way.
CORNERS: dict[str, dict[str, Any]] = {
    "sequence-level, grpo": {"importance_sampling_level": "sequence", "loss_type": "grpo", "num_iterations": 2},
    "sequence-level, dapo, β": {"importance_sampling_level": "sequence", "beta": 0.1, "num_iterations": 2},
    "sequence-level, luspo": {"importance_sampling_level": "sequence", "loss_type": "luspo"},
    "truncated masked": {"mask_truncated_completions": True, "max_completion_length": 4, "scale_rewards": "batch"},
    "truncated masked, β": {"mask_truncated_completions": True, "loss_type": "bnpo", "beta": 0.1},
    "right padding": {"trainer_kwargs": {"processing_class": right_padding()}, "loss_type": "grpo"},
    "pad is eos": {"trainer_kwargs": {"processing_class": pad_equal_to_eos()}, "beta": 0.1},
    "rewards unscaled": {"scale_rewards": "none", "loss_type": "dr_grpo"},
    "rewards scaled by the batch": {"scale_rewards": "batch", "num_iterations": 2},
    "two rewards": {"trainer_kwargs": {"reward_funcs": [reward, length]}, "reward_weights": [1.0, -0.3]},
    "two rewards, each normalised": {
        "trainer_kwargs": {"reward_funcs": [reward, length]}, "multi_objective_aggregation": "normalize_then_sum",
    },
    "unscorable rows": {"trainer_kwargs": {"reward_funcs": often_unscorable}, "num_iterations": 2},
    "unscorable by one of two": {"trainer_kwargs": {"reward_funcs": [often_unscorable, length]}, "beta": 0.1},
    "biased KL": {"use_bias_correction_kl": True, "beta": 0.3, "num_iterations": 2},
    "two-sided clipping": {"delta": 1.01, "num_iterations": 2},
    "high-entropy tokens only": {"top_entropy_quantile": 0.5, "beta": 0.1},
    "entropy bonus": {"entropy_coef": 0.05, "loss_type": "bnpo"},
    "off-policy sequences masked": {"off_policy_mask_threshold": 1e-4, "num_iterations": 2},
    "pad to a multiple": {"pad_to_multiple_of": 8, "gradient_checkpointing": True},
    "accumulation over four": {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 6, "num_iterations": 2},
}  # fmt: skip
