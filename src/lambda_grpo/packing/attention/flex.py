"""Tree attention by FlexAttention, for CUDA: one kernel call that skips blocks without a visible pair.

Not the default yet: nobody has run it on a CUDA device. Its mask is checked on CPU, where FlexAttention has a
forward but no backward. To try it: `TreeLayout(..., method="flex")`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from lambda_grpo.packing.attention.pieces import ScoreRule

BLOCK = 128  # lengths are padded to a multiple, so that compiled kernels are used again


def make_block_mask(subtree_end: Tensor, position: Tensor, window: int | None) -> Any:
    """The block mask of a packed tree of N tokens, padded to a multiple of `BLOCK`; padding sees itself."""
    n = len(position)
    padding = torch.arange(n, n + -n % BLOCK, device=position.device)
    end, where = torch.cat([subtree_end, padding + 1]), functional.pad(position, (0, len(padding)))
    limit = len(end) if window is None else window

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end[key]) & (where[query] - where[key] < limit)

    return create_block_mask(visible, None, None, len(end), len(end), device=str(position.device))


def flex_tree_attention(q: Tensor, k: Tensor, v: Tensor, block_mask: Any, scores: ScoreRule) -> Tensor:
    """(1, H, N, E); shapes as `attention.tree_attention`."""
    n = q.shape[2]
    q, k, v = (functional.pad(x, (0, 0, 0, -n % BLOCK)) for x in (q, k, v))

    def cap(score: Tensor, *_: Tensor) -> Tensor:
        return score if scores.softcap is None else scores.softcap * torch.tanh(score / scores.softcap)

    attend: Any = _compiled() if q.is_cuda else flex_attention
    score_mod = None if scores.softcap is None else cap
    out: Tensor = attend(q, k, v, score_mod, block_mask, scores.scale, enable_gqa=q.shape[1] != k.shape[1])
    return out[:, :, :n]


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)
