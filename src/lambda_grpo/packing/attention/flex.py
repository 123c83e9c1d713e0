"""Tree attention by FlexAttention, for CUDA: one kernel call that skips blocks without a visible pair.

Invariant: the block mask says what `TreeLayout.mask` says. It is made from the tree in numpy (`blocks.py`),
never from a mask of N × N pairs.

On a CPU FlexAttention has a forward only. There the mask is tested, and both its orders: keys of queries for
the forward, queries of keys for the backward. The compiled backward needs a CUDA device, where the trainer
compares it with plain rows before it relies on it (`packing/proof.py`).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import config as dynamo_config
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from lambda_grpo.packing.attention.blocks import BLOCK, Bool, PaddedTree, block_table, ordered
from lambda_grpo.packing.attention.pieces import ScoreRule

_Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

_SMALLEST_HEAD = 16  # head sizes below have no kernel
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def has_kernel(q: Tensor, v: Tensor) -> bool:
    """Whether FlexAttention has a kernel, forward and backward, for inputs like these."""
    return q.is_cuda and q.dtype in _DTYPES and min(q.shape[-1], v.shape[-1]) >= _SMALLEST_HEAD


def make_block_mask(subtree_end: Tensor, position: Tensor, window: int | None) -> BlockMask:
    """The block mask of a packed tree of N tokens, padded to a multiple of `BLOCK`; padding sees itself."""
    device = position.device
    tree = PaddedTree.of(subtree_end.cpu().numpy(), position.cpu().numpy())
    table = block_table(tree, window)

    def lists(blocks: Bool) -> tuple[Tensor, Tensor]:
        number, order = ordered(blocks)
        return torch.from_numpy(number)[None, None].to(device), torch.from_numpy(order)[None, None].to(device)

    (number, order), (full_number, full_order) = lists(table.partial), lists(table.full)
    end, where = torch.from_numpy(tree.end).to(device), torch.from_numpy(tree.position).to(device)
    return BlockMask.from_kv_blocks(
        number,
        order,
        full_number,
        full_order,
        BLOCK_SIZE=BLOCK,
        mask_mod=_sees(end) if window is None else _sees_within(end, where, where - window),
    )


def _sees(end: Tensor) -> _Mask:
    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end[key])

    return visible


def _sees_within(end: Tensor, where: Tensor, beyond: Tensor) -> _Mask:
    """`beyond`: of each query the position from which on, towards the root, it sees nothing.

    A tensor, so that kernels do not depend on the window.
    """

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end[key]) & (beyond[query] < where[key])

    return visible


def flex_tree_attention(q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask, scores: ScoreRule) -> Tensor:
    """(1, H, N, E); shapes as `attention.tree_attention`."""
    n, padded = q.shape[2], block_mask.shape[-1]
    q, k, v = (functional.pad(x, (0, 0, 0, padded - n)) for x in (q, k, v))
    attend = _compiled(scores) if q.is_cuda else _with_rule(scores)
    return attend(q, k, v, block_mask)[:, :, :n]


def _with_rule(scores: ScoreRule) -> Callable[..., Tensor]:
    """FlexAttention with its numbers fixed, because a compiler would take them for inputs."""
    scale, softcap = scores.scale, scores.softcap or 1.0

    def cap(score: Tensor, *_: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    score_mod = None if scores.softcap is None else cap

    def attend(q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask) -> Tensor:
        out: Any = flex_attention(q, k, v, score_mod, block_mask, scale, enable_gqa=q.shape[1] != k.shape[1])
        return out

    return attend


@cache
def _compiled(scores: ScoreRule) -> Callable[..., Tensor]:
    """One kernel for all lengths.

    `fullgraph`, because an error is better than the way without a kernel, which holds N × N scores. The
    rule's numbers stay constants: made inputs, as `dynamic` would have it, they cannot be compiled.
    """
    compiled = torch.compile(_with_rule(scores), dynamic=True, fullgraph=True)

    def attend(*inputs: Any) -> Tensor:
        with dynamo_config.patch(specialize_float=True):
            return compiled(*inputs)

    return attend
