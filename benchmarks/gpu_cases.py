"""What `benchmarks/gpu.py` measures with: models of random weights, and rows that share as much as is asked."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from packing_groups import Rows, Shape, make_rows
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen2Config, Qwen2ForCausalLM
from trl.trainer.utils import add_fused_lm_head

GROUP = 8  # completions


@dataclass(frozen=True)
class ModelShape:
    """Of a Qwen2: `name` says which model has it."""

    name: str
    width: int
    inner: int
    layers: int
    heads: int
    vocabulary: int = 151_936

    @property
    def parameters(self) -> int:
        """Weights that each token is multiplied with, the head's excepted."""
        size = self.width // self.heads
        return self.layers * (2 * self.width**2 + 4 * self.width * size + 3 * self.width * self.inner)


MODELS = (
    ModelShape("Qwen2.5-0.5B", 896, 4_864, 24, 14),
    ModelShape("Qwen2.5-1.5B", 1_536, 8_960, 28, 12),
)
TINY = (ModelShape("tiny", 64, 128, 2, 4, 8_000),)


def make_model(shape: ModelShape, device: torch.device, dtype: torch.dtype) -> Any:
    """As a trainer would have it: TRL's head, gradient checkpointing, training mode."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=2,
        max_position_embeddings=32_768, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device(device):
        model = Qwen2ForCausalLM(config).to(dtype)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


def make_capped(device: torch.device, dtype: torch.dtype, large: bool) -> Any:
    """A Gemma 2, small: soft caps, sliding windows."""
    torch.manual_seed(0)
    width = 1_024 if large else 64
    config = Gemma2Config(
        vocab_size=8_000, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=4,
        num_attention_heads=8 if large else 4, num_key_value_heads=2, head_dim=width // (8 if large else 4),
        sliding_window=256 if large else 16, attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
        max_position_embeddings=32_768, attn_implementation="eager",
    )  # fmt: skip
    with torch.device(device):
        model = Gemma2ForCausalLM(config).to(dtype).train()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


def rows_of(tokens: int, ratio: float) -> Rows | None:
    """About so many raw tokens, in groups of at most 8k, with raw ÷ unique as asked; None if that cannot be."""
    per_group = min(tokens, 8_192)
    length = per_group // GROUP
    shape = Shape("", max(length // 16, 4), length - max(length // 16, 4))
    groups = [make_rows(shape, GROUP, ratio, seed=seed) for seed in range(tokens // per_group)]
    return joined([group for group in groups if group is not None]) if None not in groups else None


def rows_with_a_tail(tokens: int) -> Rows | None:
    """Half of the completions end in their first quarter, and one of each group is as long as it may be."""
    whole = rows_of(tokens, 1.07)  # little more than the prompt; about 1.2 once the ends are cut off
    if whole is None:
        return None
    rng = np.random.default_rng(0)
    completions = []
    for i, row in enumerate(whole.completions):
        share = 1.0 if i % GROUP == 0 else float(np.clip(rng.lognormal(-1.3, 0.6), 0.05, 1.0))
        completions.append(row[: max(1, int(share * len(row)))])
    return Rows(whole.prompts, completions, whole.groups)


def joined(parts: list[Rows]) -> Rows:
    """Groups of several `Rows`, one after the other."""
    prompts = [prompt for part in parts for prompt in part.prompts]
    completions = [row for part in parts for row in part.completions]
    return Rows(prompts, completions, [i // GROUP for i in range(len(prompts))])
