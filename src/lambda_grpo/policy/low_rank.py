"""Low-rank adapters (LoRA) in place of a model's weights."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from lambda_grpo.errors import unknown_name


@dataclass(frozen=True)
class LowRank:
    """Low-rank adapters (LoRA): W + (alpha / rank)·B·A, with dropout before A.

    Attributes:
        target: `all-linear`, or names of modules with commas between them.
    """

    rank: int
    alpha: int
    dropout: float
    target: str = "all-linear"


def adapters(model: PreTrainedModel, low_rank: LowRank) -> Any:
    """What peft is to train in place of the model's weights.

    Raises:
        InputError: `target` names a module that the model lacks.
    """
    from peft import LoraConfig

    targets = [name.strip() for name in low_rank.target.split(",")]
    known = {name.rpartition(".")[2] for name, module in model.named_modules() if not list(module.children())}
    for name in targets:
        if name not in known | {"all-linear"}:
            raise unknown_name("module in lora_target", name, known - {""})
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=low_rank.rank,
        lora_alpha=low_rank.alpha,
        lora_dropout=low_rank.dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
    )
