"""Many GPT-2s of one shape, run side by side: every weight has a first dimension, one entry per model.

A forward pass takes one row of tokens laid out as a tree: each token sees its ancestors and itself, and
stands at the position of its depth. So what the model says after *every* prefix of a small tree comes out of
one pass, and costs one token per prefix. The models share no weight; the gradient of a sum of losses is each
model's own, and Adam, which works weight by weight, is Adam for each.

Invariant: the log-probs equal those of transformers' `GPT2LMHeadModel` in evaluation mode (no dropout).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TokenTree:
    """A row of K tokens laid out as a tree.

    Attributes:
        ids: (K,) int64 token ids.
        depth: (K,) int64, tokens above each.
        sees: (K, K) bool, whether token q (row) sees token k: k is q or one of its ancestors.
    """

    ids: torch.Tensor
    depth: torch.Tensor
    sees: torch.Tensor

    @classmethod
    def from_parents(cls, ids: Sequence[int], parents: Sequence[int]) -> "TokenTree":
        """The layout where token k hangs below token `parents[k]` < k; the first has parent -1."""
        sees = torch.eye(len(ids), dtype=torch.bool)
        for token, parent in enumerate(parents):
            if parent >= 0:
                sees[token] |= sees[parent]
        return cls(torch.tensor(ids), sees.sum(dim=1) - 1, sees)


def stack(models: Sequence[GPT2LMHeadModel]) -> Weights:
    """The weights of M models of one shape: name → (M, …) leaf tensor that requires a gradient.

    The tied output matrix is kept once, as the token embedding; so are the buffers left out.
    """
    each: list[Mapping[str, torch.Tensor]] = [dict(model.transformer.named_parameters()) for model in models]
    return {
        name: torch.stack([weights[name].detach() for weights in each]).requires_grad_() for name in each[0]
    }


def log_probs(weights: Weights, config: GPT2Config, tree: TokenTree, allowed: Sequence[int]) -> torch.Tensor:
    """Log-probs of the next token after every token of the tree, renormalised over the allowed ones.

    Args:
        weights: of M models, as `stack` gives them.
        config: their shape.
        tree: K tokens.
        allowed: A token ids; all others have probability 0.

    Returns:
        (M, K, A) in the weights' dtype.
    """
    models = len(weights["wte.weight"])
    x = weights["wte.weight"][:, tree.ids] + weights["wpe.weight"][:, tree.depth]
    unseen = torch.zeros(tree.sees.shape, dtype=x.dtype).masked_fill(~tree.sees, float("-inf"))
    for layer in range(config.n_layer):
        block = f"h.{layer}"
        inner = _linear(_norm(x, weights, f"{block}.ln_1"), weights, f"{block}.attn.c_attn")
        q, k, v = (
            part.reshape(models, len(tree.ids), config.n_head, -1).transpose(1, 2)
            for part in inner.chunk(3, -1)
        )
        scores = q @ k.transpose(-1, -2) / (q.shape[-1] ** 0.5) + unseen
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(models, len(tree.ids), -1)
        x = x + _linear(mixed, weights, f"{block}.attn.c_proj")
        inner = _linear(_norm(x, weights, f"{block}.ln_2"), weights, f"{block}.mlp.c_fc")
        x = x + _linear(F.gelu(inner, approximate="tanh"), weights, f"{block}.mlp.c_proj")
    out = weights["wte.weight"][:, list(allowed)]
    return (_norm(x, weights, "ln_f") @ out.transpose(-1, -2)).log_softmax(-1)


def _norm(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    scaled = F.layer_norm(x, x.shape[-1:], eps=1e-5)
    return scaled * weights[f"{name}.weight"][:, None] + weights[f"{name}.bias"][:, None]


def _linear(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    return torch.baddbmm(weights[f"{name}.bias"][:, None], x, weights[f"{name}.weight"])
