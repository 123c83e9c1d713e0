"""Attention piece by piece, as `plan.py` says, exact in value and gradient.

Two pieces with outputs o₁, o₂ and log-sum-exps l₁, l₂ merge into

    l = log(exp l₁ + exp l₂),    o = o₁·exp(l₁ - l) + o₂·exp(l₂ - l),

and the backward calls each piece's own backward with the *merged* o and l. That is exact: of the other
pieces a softmax's gradient needs nothing else.

Invariant: log-sum-exps, and the sums over pieces, are float32 at least, whatever the inputs are.

Shapes: q (1, H, N, D), k (1, K, N, D), v (1, K, N, E), where H is a multiple of K (grouped queries).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lambda_grpo.packing.attention.plan import Block, Path


@dataclass(frozen=True, eq=False)
class KeyPiece:
    """A piece of a plan, its mask where the tensors are.

    Attributes:
        keys, causal: as in the plan.
        mask: (queries, keys), 0 where visible and -inf elsewhere, in the dtype of the attention; or None.
    """

    keys: Path
    causal: bool
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class QueryRows:
    """The queries [start, stop) of a plan and their pieces."""

    start: int
    stop: int
    pieces: tuple[KeyPiece, ...]


@dataclass(frozen=True)
class ScoreRule:
    """score = scale · q·k, or softcap · tanh(scale · q·k / softcap)."""

    scale: float
    softcap: float | None = None


class _Kernel(Protocol):
    """Attention over one piece: `forward` gives the output and the log-sum-exp, `backward` the gradients."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, piece: KeyPiece, scores: ScoreRule
    ) -> tuple[Tensor, Tensor]: ...

    def backward(
        self, saved: "_Saved", k: Tensor, v: Tensor, piece: KeyPiece, scores: ScoreRule
    ) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclass(frozen=True, eq=False)
class _Saved:
    """Of one block of queries: the output's gradient, the queries, merged output and log-sum-exp."""

    grad: Tensor
    q: Tensor
    out: Tensor
    lse: Tensor


def to_rows(plan: Sequence[Block], dtype: torch.dtype, device: torch.device) -> list[QueryRows]:
    """Bring a plan's masks to a device, as numbers to add to scores of a dtype."""

    def tensor(mask: Any) -> Tensor | None:
        if mask is None:
            return None
        visible = torch.from_numpy(mask).to(device)
        return torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill_(~visible, -torch.inf)

    return [
        QueryRows(
            block.start, block.stop, tuple(KeyPiece(p.keys, p.causal, tensor(p.mask)) for p in block.pieces)
        )
        for block in plan
    ]


def attend(q: Tensor, k: Tensor, v: Tensor, rows: list[QueryRows], scores: ScoreRule) -> Tensor:
    """Attention of a packed tree: (1, H, N, E), differentiable in q, k and v.

    Args:
        q, k, v: of one dtype.
        rows: a plan of N tokens. Its blocks should be short where `stores_scores` says so.
        scores: how scores are made.
    """
    out: Tensor = _Attend.apply(q, k, v, rows, scores)  # type: ignore[no-untyped-call]
    return out


def stores_scores(q: Tensor, v: Tensor, softcap: float | None) -> bool:
    """Whether `attend` holds a piece's scores in memory: off CPU, under a soft cap, or if D ≠ E."""
    return q.device.type != "cpu" or softcap is not None or q.shape[-1] != v.shape[-1]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: list[QueryRows], scores: ScoreRule
    ) -> Tensor:
        kernel = _kernel(q, v, scores)
        wide = torch.promote_types(q.dtype, torch.float32)
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[-1]).transpose(1, 2)
        lse = q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=wide).transpose(1, 2)
        for block in rows:
            own = slice(block.start, block.stop)
            merged: tuple[Tensor, Tensor] | None = None
            for piece in block.pieces:
                part = kernel.forward(q[:, :, own], _take(k, piece.keys), _take(v, piece.keys), piece, scores)
                merged = part if merged is None else merge(merged, part)
            assert merged is not None  # a query sees at least itself
            out[:, :, own], lse[:, :, own] = merged
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.rows, ctx.scores = rows, scores
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, lse = ctx.saved_tensors
        kernel = _kernel(q, v, ctx.scores)
        wide = torch.promote_types(q.dtype, torch.float32)
        grad_q = torch.empty_like(q)
        grad_k, grad_v = (torch.zeros_like(x, dtype=wide) for x in (k, v))
        for block in ctx.rows:
            own = slice(block.start, block.stop)
            saved = _Saved(*(x[:, :, own] for x in (grads[0], q, out, lse)))
            total: Tensor | None = None
            for piece in block.pieces:
                keys, values = _take(k, piece.keys), _take(v, piece.keys)
                to_q, to_k, to_v = kernel.backward(saved, keys, values, piece, ctx.scores)
                total = to_q.to(wide) if total is None else total + to_q
                _add(grad_k, to_k, piece.keys)
                _add(grad_v, to_v, piece.keys)
            assert total is not None
            grad_q[:, :, own] = total
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None


def merge(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Output (…, E) and log-sum-exp (…) over the keys of two pieces, from those over each."""
    lse = torch.logaddexp(one[1], other[1])
    weights = ((part[1] - lse).exp().unsqueeze(-1) for part in (one, other))
    a, b = (part[0] * weight for part, weight in zip((one, other), weights, strict=True))
    return a + b, lse


def _take(x: Tensor, ranges: Path) -> Tensor:
    parts = [x[:, :, start:stop] for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _add(total: Tensor, grad: Tensor, ranges: Path) -> None:
    """total[ranges] += grad, where grad lists the ranges' tokens one after the other."""
    done = 0
    for start, stop in ranges:
        total[:, :, start:stop] += grad[:, :, done : done + stop - start]
        done += stop - start


def _kernel(q: Tensor, v: Tensor, scores: ScoreRule) -> _Kernel:
    return _Matmul() if stores_scores(q, v, scores.softcap) else _Flash()


class _Flash:
    """PyTorch's flash attention on CPU, which also gives the log-sum-exp."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, piece: KeyPiece, scores: ScoreRule
    ) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, piece.causal, attn_mask=piece.mask, scale=scores.scale
        )
        return result

    def backward(
        self, saved: _Saved, k: Tensor, v: Tensor, piece: KeyPiece, scores: ScoreRule
    ) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                saved.grad, saved.q, k, v, saved.out, saved.lse,
                0.0, piece.causal, attn_mask=piece.mask, scale=scores.scale,
            )
        )  # fmt: skip
        return result


class _Matmul:
    """Two matrix products with the scores in between, on any device; knows the soft cap."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, piece: KeyPiece, scores: ScoreRule
    ) -> tuple[Tensor, Tensor]:
        s, _ = self._scores(_grouped(q, k), k, piece, scores)
        lse = s.logsumexp(dim=-1)
        out = (s - lse.unsqueeze(-1)).exp().to(v.dtype) @ v.unsqueeze(2)
        return out.flatten(1, 2), lse.flatten(1, 2)

    def backward(
        self, saved: _Saved, k: Tensor, v: Tensor, piece: KeyPiece, scores: ScoreRule
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, grad, out = (_grouped(x, k) for x in (saved.q, saved.grad, saved.out))
        s, slope = self._scores(q, k, piece, scores)
        p = (s - _grouped(saved.lse, k).unsqueeze(-1)).exp()
        to_v = (p.to(v.dtype).mT @ grad).sum(dim=2)
        to_p = grad @ v.unsqueeze(2).mT - (grad * out).sum(dim=-1, keepdim=True)
        to_s = (p * to_p * slope * scores.scale).to(q.dtype)
        to_q = to_s @ k.unsqueeze(2)
        return to_q.flatten(1, 2), (to_s.mT @ q).sum(dim=2), to_v

    def _scores(
        self, q: Tensor, k: Tensor, piece: KeyPiece, scores: ScoreRule
    ) -> tuple[Tensor, Tensor | float]:
        """Scores, and their slope by the uncapped scores."""
        s = (q @ k.unsqueeze(2).mT).to(torch.promote_types(q.dtype, torch.float32)) * scores.scale
        slope: Tensor | float = 1.0
        if scores.softcap is not None:
            capped = torch.tanh(s / scores.softcap)
            s, slope = scores.softcap * capped, 1 - capped**2
        if piece.causal:
            s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).triu(1), -torch.inf)
        return (s if piece.mask is None else s + piece.mask), slope


def _grouped(x: Tensor, k: Tensor) -> Tensor:
    """(1, H, n, …) → (1, K, H/K, n, …): the query heads beside the key head they share."""
    return x.reshape(x.shape[0], k.shape[1], -1, *x.shape[2:])
