"""Attention of rows that are being sampled to prefixes which several of them share, and which are kept once.

The cache of a row holds what is the row's own. The queries of all rows that share a prefix meet its keys in
one product, where otherwise each row would read a copy of them. Outputs over several parts of the keys are
merged by their log-sum-exps, as in `packing.attention.pieces`. So the result is that of one softmax over all.

R is the number of rows, H of query heads, K of key heads, S of a prefix's tokens, W of the cache's columns.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from lambda_grpo.errors import InputError
from lambda_grpo.packing.attention import dense_attention
from lambda_grpo.packing.attention.pieces import ScoreRule, merge, stores_scores
from lambda_grpo.sampling.cache import GrowingWindowLayer
from lambda_grpo.sampling.trie import SharedPrefix

IMPLEMENTATION = "lambda_grpo_shared_prefix"

# Bytes of further copies, in one layer, from which on a product of its own is quicker than reading them. It
# was measured on CPUs; elsewhere it is a guess.
_WORTH_BYTES = {"cpu": 2 << 20}
_WORTH_ELSEWHERE = 64 << 20


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of tokens that several rows begin with, or go on with after another prefix.

    Attributes:
        layers: of each layer, (1, K, S, D) keys and (1, K, S, E) values.
        rows: which rows begin so; numbers of rows of the part that was run, first and one past the last.
    """

    layers: list[tuple[Tensor, Tensor]]
    rows: tuple[int, int]

    @classmethod
    def of(cls, cache: DynamicCache, stretch: SharedPrefix) -> "Prefix":
        """Take a stretch out of the cache of a packed row."""
        tokens = torch.from_numpy(stretch.tokens).to(cache.layers[0].keys.device)
        layers = [
            (layer.keys.index_select(2, tokens), layer.values.index_select(2, tokens))
            for layer in cache.layers
        ]
        return cls(layers, stretch.rows)


def worth_sharing(model: Any, cache: DynamicCache, longest: int) -> int | None:
    """The tokens of further copies from which on a prefix is kept once; None if a model cannot do that.

    Args:
        model: a transformers model, unwrapped.
        cache: as `growing_cache` makes it.
        longest: tokens of the longest row at its end. A sliding window must hold all of them.
    """
    config = model.config.get_text_config()
    windows = [layer.sliding_window for layer in cache.layers if isinstance(layer, GrowingWindowLayer)]
    if len(cache.layers) != config.num_hidden_layers or min(windows, default=longest) < longest:
        return None  # some layers read the keys of others, or no longer see all of a prefix
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * heads * size * model.dtype.itemsize
    return _WORTH_BYTES.get(model.device.type, _WORTH_ELSEWHERE) // token


@dataclass
class _Step:
    """What the layers of one pass over new tokens need.

    Attributes:
        prefixes: with the places (n,) of their rows in the batch.
        padding: (R, 1, 1, W), -inf where a column holds no token of the row; None if there is no such column.
        layers: how many attended so far.
    """

    prefixes: list[tuple[Prefix, Tensor]]
    padding: Tensor | None
    layers: int = 0


_step: ContextVar[_Step | None] = ContextVar("lambda_grpo_shared_prefix", default=None)


class SharedPrefixes:
    """The prefixes that rows share while they are sampled.

    Attributes:
        kept: with the numbers of the rows that begin so. One that follows another comes later.
    """

    def __init__(self) -> None:
        self.kept: list[tuple[Prefix, np.ndarray]] = []
        self._places: list[Tensor] = []

    def add(self, prefixes: Sequence[Prefix], rows: np.ndarray, block: int) -> None:
        """Keep what was found in a part of the prompts.

        Args:
            rows: their numbers; the first of them are those of the part.
            block: rows that will fork off each of them, itself included; they begin so as well.
        """
        for prefix in prefixes:
            first = rows[slice(*prefix.rows)]
            self.kept.append((prefix, (first[:, None] + np.arange(block)).flatten()))

    def drop_unused(self, rows: np.ndarray) -> None:
        """Forget the prefixes that none of these rows has."""
        self.kept = [(prefix, those) for prefix, those in self.kept if np.isin(rows, those).any()]

    def place(self, rows: np.ndarray, device: torch.device) -> None:
        """Send where in the batch the rows of each prefix are; again whenever the batch has other rows.

        Args:
            rows: (R,) the numbers of the rows in the batch.
            device: of the model.
        """
        places = [np.flatnonzero(np.isin(rows, those)) for _, those in self.kept]
        self._places = [torch.from_numpy(place).to(device) for place in places]

    @contextmanager
    def attending(self, model: Any, padding: Tensor | None) -> Iterator[None]:
        """Inside, a model may run once over a new token for each row, whose cache lacks the prefixes.

        Args:
            model: a transformers model, unwrapped and `switched` to `IMPLEMENTATION`.
            padding: (R, W) bool, the columns of the cache, the new token's included, that hold no token of
                a row; None: there is none.

        Raises:
            InputError: not all layers attended to the prefixes.
        """
        mask = None
        if padding is not None:
            zeros = torch.zeros(padding.shape, dtype=model.dtype, device=padding.device)
            mask = zeros.masked_fill_(padding, -torch.inf)[:, None, None]
        prefixes = [prefix for prefix, _ in self.kept]
        step = _Step(list(zip(prefixes, self._places, strict=True)), mask)
        token = _step.set(step)
        try:
            yield
        finally:
            _step.reset(token)
        if step.layers != model.config.get_text_config().num_hidden_layers:
            raise InputError(f"{type(model).__name__}: not all of its layers attend to shared prefixes")


def _make_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Registered with transformers: the mask of a layer; without a step the usual one."""
    return sdpa_mask(*args, **kwargs) if _step.get() is None else None


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Registered with transformers: the attention of one layer; returns (R, 1, H, E) and no weights."""
    scores = ScoreRule(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap)
    step = _step.get()
    if step is None:
        out = dense_attention(query, key, value, attention_mask, scores, dropout)
        return out.transpose(1, 2).contiguous(), None
    layer, step.layers = step.layers, step.layers + 1
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    rows, heads = query.shape[0], key.shape[1]
    q = query.reshape(rows, heads, -1, query.shape[-1]).to(dtype)  # heads that share a key head: neighbours
    found = _part(q, key.to(dtype), value.to(dtype), step.padding, scores)
    for prefix, places in step.prefixes:
        k, v = (x.to(dtype) for x in prefix.layers[layer])
        whole = len(places) == rows
        own = q if whole else q[places]
        out, lse = _part(own.transpose(0, 1).reshape(1, heads, -1, q.shape[-1]), k, v, None, scores)
        other = (
            out.view(heads, len(own), -1, out.shape[-1]).transpose(0, 1),
            lse.view(heads, len(own), -1).transpose(0, 1),
        )
        if whole:
            found = merge(found, other)
        else:
            merged = merge((found[0][places], found[1][places]), other)
            for all_rows, part in zip(found, merged, strict=True):
                all_rows[places] = part.to(all_rows.dtype)
    return found[0].to(q.dtype).reshape(rows, 1, query.shape[1], -1), None


def _part(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scores: ScoreRule) -> tuple[Tensor, Tensor]:
    """Output (B, K, n, E) and log-sum-exp (B, K, n) of queries (B, K, n, D) over some keys (B, K, S, D)."""
    if not stores_scores(q, v, scores.softcap):
        result: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=mask, scale=scores.scale
        )
        return result
    s = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) * scores.scale
    if scores.softcap is not None:
        s = scores.softcap * torch.tanh(s / scores.softcap)
    s = s if mask is None else s + mask
    lse = s.logsumexp(dim=-1)
    return (s - lse.unsqueeze(-1)).exp().to(v.dtype) @ v, lse


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, _make_mask)
