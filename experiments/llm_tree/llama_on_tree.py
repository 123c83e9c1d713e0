"""A pre-trained Llama on the toy tree: what it says after each prefix comes out of one row of 15 tokens.

Two things make training on it fast, and neither changes what is computed. Of the embeddings, only those of
the three tokens in the tree are kept: the gradient of all others is zero, and Adam without weight decay
leaves a weight alone whose gradient was never another. And the model says L or R, so that only these two rows
reach the head. So the model is trained whole, and the 28 million embeddings of SmolLM2 cost nothing.

Invariant: the log-probs equal those of transformers' `LlamaForCausalLM`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from experiments.binary_tree import toy_tree
from experiments.binary_tree.stacked_gpt2 import TokenTree, Weights
from lambda_grpo.errors import InputError

START, LEFT, RIGHT = range(3)  # rows of the embedding that is kept
Angles = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class LlamaPolicy:
    """One model, which stands for one seed; what `toy_training.train` needs of it.

    Attributes:
        weights: by name, without the embeddings; `embedding` and, if it is not tied, `head` hold a row for
            the start token, for L and for R.
        config: the model's shape.
    """

    weights: Weights
    config: Any
    large: ClassVar[bool] = True

    @classmethod
    def of(cls, model: Any, ids: Sequence[int]) -> "LlamaPolicy":
        """The policy of a `LlamaForCausalLM`; `ids` are those of the start token, of L and of R.

        Raises:
            InputError: another architecture, or a Llama with biases or with scaled positions.
        """
        config = model.config
        plain = config.model_type == "llama" and not (config.attention_bias or config.mlp_bias)
        if not plain or config.rope_parameters["rope_type"] != "default":
            raise InputError(
                "model: expected a plain Llama, such as smollm2-135m, got a model of type "
                f"{config.model_type!r}, with biases or with scaled positions"
            )
        weights = {
            name.removeprefix("model."): weight.detach()
            for name, weight in model.named_parameters()
            if "embed_tokens" not in name and "lm_head" not in name
        }
        weights["embedding"] = model.get_input_embeddings().weight.detach()[list(ids)]
        if not config.tie_word_embeddings:
            weights["head"] = model.get_output_embeddings().weight.detach()[list(ids)]
        return cls(weights, config)

    def log_probs(self, weights: Weights) -> torch.Tensor:
        """(1, 15, 2) of L and R at each inner node of the toy tree."""
        return log_probs(weights, self.config, toy_tree.layout(START, (LEFT, RIGHT)))[None]


def log_probs(weights: Weights, config: Any, tree: TokenTree) -> torch.Tensor:
    """(K, 2) log-probs of L and R after every token of a tree of K tokens; they sum to 1.

    Args:
        weights: as `LlamaPolicy` holds them.
        config: the model's shape.
        tree: its ids are START, LEFT and RIGHT.
    """
    x = weights["embedding"][tree.ids]
    unseen = torch.zeros(tree.sees.shape, dtype=x.dtype).masked_fill(~tree.sees, float("-inf"))
    angles = _angles(config, tree.depth, x.dtype)
    for layer in range(config.num_hidden_layers):
        block = f"layers.{layer}"
        inner = _norm(x, weights[f"{block}.input_layernorm.weight"], config)
        x = x + _attention(inner, weights, f"{block}.self_attn", config, (unseen, angles))
        inner = _norm(x, weights[f"{block}.post_attention_layernorm.weight"], config)
        x = x + _feed_forward(inner, weights, f"{block}.mlp")
    out = weights.get("head", weights["embedding"])[[LEFT, RIGHT]]
    return F.linear(_norm(x, weights["norm.weight"], config), out).log_softmax(-1)


def _attention(
    x: torch.Tensor, weights: Weights, name: str, config: Any, seen: tuple[torch.Tensor, Angles]
) -> torch.Tensor:
    unseen, angles = seen
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    q, k, v = (
        F.linear(x, weights[f"{name}.{part}_proj.weight"]).reshape(len(x), count, -1).transpose(0, 1)
        for part, count in (("q", heads), ("k", groups), ("v", groups))
    )
    k, v = (each.repeat_interleave(heads // groups, 0) for each in (_turned(k, angles), v))
    scores = _turned(q, angles) @ k.mT / (q.shape[-1] ** 0.5) + unseen
    mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), -1)
    return F.linear(mixed, weights[f"{name}.o_proj.weight"])


def _feed_forward(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    gate, up = (F.linear(x, weights[f"{name}.{part}_proj.weight"]) for part in ("gate", "up"))
    return F.linear(F.silu(gate) * up, weights[f"{name}.down_proj.weight"])


def _angles(config: Any, depth: torch.Tensor, dtype: torch.dtype) -> Angles:
    """(K, head size) cosines and sines of each token's position, which is its depth."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    exponent = torch.arange(0, size, 2, dtype=torch.float32) / size
    angle = (depth[:, None] * config.rope_parameters["rope_theta"] ** -exponent).repeat(1, 2)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _turned(x: torch.Tensor, angles: Angles) -> torch.Tensor:
    cosine, sine = angles
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine


def _norm(x: torch.Tensor, weight: torch.Tensor, config: Any) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, config.rms_norm_eps)
