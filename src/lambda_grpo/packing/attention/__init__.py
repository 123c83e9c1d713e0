"""Tree attention for transformers: each token of a packed tree attends to itself and its ancestors only.

Invariant: the result equals causal attention over each root-to-leaf path on its own, in value and gradient;
sliding windows count positions on that path. No model is patched: `switching.py` selects the implementation
registered here for one packed pass, through transformers' own interfaces, and puts the model's own back.
So every other call, as in generation, plain passes or vision towers, is the model's own, bit for bit.

The mask that a layer gets is a `TreeMask`, not a tensor, so that layers recomputed in the backward (gradient
checkpointing) find the tree again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from lambda_grpo.errors import InputError
from lambda_grpo.packing.attention.flex import flex_tree_attention, has_kernel, make_block_mask
from lambda_grpo.packing.attention.pieces import QueryRows, ScoreRule, attend, stores_scores, to_rows
from lambda_grpo.packing.attention.plan import Block, Limits, plan_attention

IMPLEMENTATION = "lambda_grpo_tree"

_CHANGE_ATTENTION = {"s_aux", "sinks", "position_bias", "head_mask"}  # arguments we would wrongly ignore
_STORED_ROWS = 256  # queries at a time where scores are held in memory
_PIECE_COST = 3_000_000  # fixed cost of a piece, in query-key pairs × heads × head size: measured


def plan_limits(width: int, stored: bool) -> Limits:
    """How to cut for attention `width` = heads × head size wide; `stored`: its scores are held in memory."""
    return Limits(_PIECE_COST // width, _STORED_ROWS if stored else 0)


@dataclass(frozen=True, eq=False)
class TreeLayout:
    """How the N tokens of one packed row hang together; all layers of a forward pass share it.

    Attributes:
        subtree_end: (N,) int64, depth-first: one past the last token of each token's subtree.
        position: (N,) int64, each token's distance from its root.
        method: `auto`, FlexAttention where it has a kernel and pieces elsewhere; `pieces`; or `flex`.
    """

    subtree_end: Tensor
    position: Tensor
    method: Literal["auto", "pieces", "flex"] = "auto"
    _plans: dict[Any, list[Block]] = field(default_factory=dict, repr=False)
    _rows: dict[Any, list[QueryRows]] = field(default_factory=dict, repr=False)
    _block_masks: dict[int | None, Any] = field(default_factory=dict, repr=False)

    def mask(self, window: int | None = None) -> Tensor:
        """(N, N) bool: whether a token (row) sees another (column)."""
        index = torch.arange(len(self.position), device=self.position.device)
        query = index[:, None]
        visible = (index <= query) & (query < self.subtree_end)
        if window is not None:
            visible &= self.position[:, None] - self.position < window
        return visible

    def plan(self, window: int | None, limits: Limits) -> list[Block]:
        """How to attend; made once."""
        if (window, limits) not in self._plans:
            tree = self.subtree_end.cpu().numpy(), self.position.cpu().numpy()
            self._plans[window, limits] = plan_attention(*tree, window, limits)
        return self._plans[window, limits]

    def rows(self, q: Tensor, window: int | None, stored: bool) -> list[QueryRows]:
        """The plan with masks for queries like q (1, H, N, D); made once."""
        limits = plan_limits(q.shape[1] * q.shape[3], stored)
        key = (window, limits, q.dtype, q.device)
        if key not in self._rows:
            self._rows[key] = to_rows(self.plan(window, limits), q.dtype, q.device)
        return self._rows[key]

    def block_mask(self, window: int | None) -> Any:
        """FlexAttention's mask; made once."""
        if window not in self._block_masks:
            self._block_masks[window] = make_block_mask(self.subtree_end, self.position, window)
        return self._block_masks[window]


@dataclass(frozen=True, eq=False)
class TreeMask:
    """What a layer gets in place of an attention mask.

    Attributes:
        layout: the tree.
        window: the layer's sliding window, if it has one.
    """

    layout: TreeLayout
    window: int | None


@dataclass
class Binding:
    """A tree bound for one forward pass.

    Attributes:
        own: the attention that the model uses for plain rows.
        layers: how many layers attended to the tree.
    """

    layout: TreeLayout
    own: str
    layers: int = 0


_bound: ContextVar[Binding | None] = ContextVar("lambda_grpo_tree", default=None)


@contextmanager
def bound(layout: TreeLayout, own: str = IMPLEMENTATION) -> Iterator[Binding]:
    """Inside, a model switched by `use_tree_attention` takes its one row of input for this tree.

    `own` is the attention that the model uses for plain rows.
    """
    binding = Binding(layout, own)
    token = _bound.set(binding)
    try:
        yield binding
    finally:
        _bound.reset(token)


def tree_attention(q: Tensor, k: Tensor, v: Tensor, mask: TreeMask, scores: ScoreRule) -> Tensor:
    """Attention of one packed row: (1, H, N, E).

    Args:
        q: (1, H, N, D).
        k, v: (1, K, N, D) and (1, K, N, E); H is a multiple of K.
        mask: the tree, and a window.
        scores: how scores are made.
    """
    method = mask.layout.method
    if method == "flex" or (method == "auto" and has_kernel(q, v)):
        return flex_tree_attention(q, k, v, mask.layout.block_mask(mask.window), scores)
    rows = mask.layout.rows(q, mask.window, stores_scores(q, v, scores.softcap))
    return attend(q, k, v, rows, scores)


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, scores: ScoreRule, dropout: float = 0.0
) -> Tensor:
    """Attention with a bool mask, true where visible, broadcast to (B, H, queries, keys); None: causal."""
    if scores.softcap is None:
        causal = visible is None and q.shape[2] > 1
        return functional.scaled_dot_product_attention(
            q, k, v, visible, dropout, causal, scale=scores.scale, enable_gqa=True
        )
    if visible is None:
        visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    s = scores.softcap * torch.tanh(q @ k.mT * (scores.scale / scores.softcap))
    s = s.masked_fill(~visible, torch.finfo(s.dtype).min)  # finite: padding sees nothing, and must not be NaN
    weights = s.softmax(dim=-1, dtype=torch.promote_types(s.dtype, torch.float32))
    return functional.dropout(weights.to(v.dtype), dropout) @ v


def _make_mask(*args: Any, local_size: int | None = None, **kwargs: Any) -> TreeMask | Tensor | None:
    """Registered with transformers: makes the mask of all layers that share a window."""
    binding = _bound.get()
    if binding is None:
        if local_size is not None:
            kwargs["local_size"] = local_size
        return sdpa_mask(*args, **kwargs)
    return TreeMask(binding.layout, local_size)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: TreeMask | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Registered with transformers: the attention of one layer; returns (1, N, H, E) and no weights."""
    if torch.is_autocast_enabled(query.device.type):  # as SDPA does it
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    for name in _CHANGE_ATTENTION & others.keys():
        if others[name] is not None:
            raise InputError(
                f"{type(module).__name__}: attention with {name} cannot be packed; train without tree packing"
            )
    scores = ScoreRule(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap)
    if isinstance(attention_mask, TreeMask):
        if dropout > 0:
            raise InputError(
                f"attention dropout {dropout} is active; in a packed tree it would differ from plain rows"
            )
        tokens = len(attention_mask.layout.position)
        if query.shape[2] != tokens or key.shape[2] != tokens:
            raise InputError(
                f"{type(module).__name__}: got {query.shape[2]} queries and {key.shape[2]} keys, expected "
                f"{tokens}, the tokens of the packed row; virtual tokens (prompt or prefix tuning) and "
                "caches cannot be packed; train without tree packing"
            )
        binding = _bound.get()
        if binding is not None:
            if softcap is not None and binding.own == "sdpa":
                raise InputError(
                    f"{type(module).__name__}: SDPA leaves out the soft cap of {softcap}, so plain rows "
                    "would differ from packed ones; load the model with attn_implementation='eager'"
                )
            binding.layers += 1
        out = tree_attention(query, key, value, attention_mask, scores)
    elif _bound.get() is not None:
        raise InputError(
            f"{type(module).__name__} makes its own attention mask; train it without tree packing"
        )
    else:
        out = dense_attention(query, key, value, attention_mask, scores, dropout)  # plain rows may drop out
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, _make_mask)
