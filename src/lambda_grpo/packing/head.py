"""Log-probs and entropies of single tokens from hidden states, a chunk of positions at a time.

With logits z of a position, divided by the temperature, and l = log Σ exp z:

    log π(y) = z_y - l,        H = l - Σ_j π_j z_j.

Invariant: logits exist for one chunk only. The backward makes them again, also a chunk at a time. On CUDA an
engine may bring kernels for this.

M is the number of predicted tokens, d that of hidden features, V the size of the vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

_CHUNK_LOGITS = 2**22  # logits at a time …
_CHUNK_ROWS = 256  # … but at least so many positions: each chunk costs a pass over the head's gradient


@dataclass(frozen=True)
class Logits:
    """What becomes of the head's output x: z = softcap · tanh(scale · x / softcap) / temperature."""

    temperature: float = 1.0
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of_model(cls, config: Any, temperature: float = 1.0) -> "Logits":
        """Read off a transformers config what the model does to its logits."""
        names = ("logit_scale", "output_multiplier", "lm_head_multiplier")
        scales = [value for name in names if (value := getattr(config, name, None)) is not None]
        before = config.model_type == "minicpm3"  # it scales what the head gets
        if (scaling := getattr(config, "logits_scaling", None)) is not None and not before:
            scales.append(scaling if config.model_type == "hyperclovax" else 1 / scaling)
        scale = scales[0] if scales else 1.0
        return cls(temperature, scale, getattr(config, "final_logit_softcapping", None))

    def __call__(self, x: Tensor) -> Tensor:
        """z, in float32 at least."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        x = x if self.scale == 1 else x * self.scale
        x = x if self.softcap is None else self.softcap * torch.tanh(x / self.softcap)
        return x if self.temperature == 1 else x / self.temperature

    def backward_(self, grad: Tensor, z: Tensor) -> Tensor:
        """The gradient by x from the one by z, in place."""
        if self.softcap is not None:
            grad *= 1 - (z * (self.temperature / self.softcap)) ** 2
        factor = self.scale / self.temperature
        return grad if factor == 1 else grad.mul_(factor)


Kernels = Callable[[torch.nn.Linear, Tensor, Tensor, Logits], tuple[Tensor, Tensor]]
_kernels: list[Kernels] = []


def register_kernels(kernels: Kernels) -> None:
    """Have `token_scores` of a plain linear head on CUDA computed by an engine's kernels from now on.

    Args:
        kernels: gets head, hidden, target and logits as `token_scores` does, and computes in float32.
    """
    _kernels.append(kernels)


def chunk_rows(vocabulary: int) -> int:
    """How many positions to project at a time."""
    return max(_CHUNK_ROWS, _CHUNK_LOGITS // vocabulary)


def token_scores(
    head: torch.nn.Module, hidden: Tensor, target: Tensor, logits: Logits, rows: int
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target, and entropy of its distribution: (M,) each, float32 at least, differentiable.

    Args:
        head: the output embedding, (…, d) → (…, V). A plain `nn.Linear` takes a faster way than others do.
        hidden: (M, d).
        target: (M,) int64.
        logits: what becomes of the head's output.
        rows: positions in a chunk; kernels of an engine have chunks of their own.
    """
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    if type(head) is torch.nn.Linear and "forward" not in vars(head) and not any(hooks):
        if _kernels and hidden.is_cuda and hidden.dtype != torch.float64:
            return _kernels[-1](head, hidden, target, logits)
        scores: tuple[Tensor, Tensor] = LinearScores.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, target, logits, rows
        )
        return scores
    parts = [
        checkpoint(_scores_of, head, hidden[at], target[at], logits, use_reentrant=False)
        for at in _chunks(len(hidden), rows) or [slice(0)]
    ]
    return torch.cat([logps for logps, _ in parts]), torch.cat([entropies for _, entropies in parts])


def _scores_of(
    head: Callable[[Tensor], Tensor], h: Tensor, y: Tensor, logits: Logits
) -> tuple[Tensor, Tensor]:
    z = logits(head(h))
    lse = z.logsumexp(dim=-1)
    return z.gather(1, y[:, None])[:, 0] - lse, lse - ((z - lse[:, None]).exp() * z).sum(dim=-1)


class LinearScores(torch.autograd.Function):
    """`token_scores` of a linear head, whose weight's gradient is summed in place, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        logits: Logits,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        autocast = torch.is_autocast_enabled(hidden.device.type)
        dtype = torch.get_autocast_dtype(hidden.device.type) if autocast else weight.dtype
        wide = torch.promote_types(dtype, torch.float32)
        w, b = weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
        lse, logp, entropy = (hidden.new_empty(len(hidden), dtype=wide) for _ in range(3))
        with torch.autocast(hidden.device.type, enabled=False):  # or sums of logits too are made in 16 bits
            for at in _chunks(len(hidden), rows):
                z = logits(functional.linear(hidden[at].to(dtype), w, b))
                torch.logsumexp(z, dim=-1, out=lse[at])
                logp[at] = z.gather(1, target[at, None])[:, 0] - lse[at]
                p = (z - lse[at, None]).exp_()
                entropy[at] = lse[at] - torch.linalg.vecdot(p, z)
        ctx.save_for_backward(hidden, weight, bias, target, lse, entropy)
        ctx.logits, ctx.rows, ctx.dtype = logits, rows, dtype
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, target, lse, entropy = ctx.saved_tensors
        to_logp, to_entropy = grads
        by_entropy = bool(to_entropy.any())
        w, b = weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype)
        to_hidden = torch.empty_like(hidden)
        to_weight, to_bias = (
            torch.zeros_like(x, dtype=lse.dtype) if needed else None
            for x, needed in zip((weight, bias), ctx.needs_input_grad[1:3], strict=True)
        )
        for at in _chunks(len(hidden), ctx.rows):
            h = hidden[at].to(ctx.dtype)
            z = ctx.logits(functional.linear(h, w, b))
            to_z = (z - lse[at, None]).exp_()
            if by_entropy:
                surprise = (z - (lse - entropy)[at, None]).mul_(to_entropy[at, None])
                to_z *= surprise.add_(to_logp[at, None]).neg_()
            else:
                to_z *= -to_logp[at, None]
            to_z.scatter_add_(1, target[at, None], to_logp[at, None])
            to_x = ctx.logits.backward_(to_z, z)
            if to_bias is not None:
                to_bias += to_x.sum(dim=0)
            to_x = to_x.to(ctx.dtype)
            to_hidden[at] = to_x @ w
            if to_weight is not None:
                _add_product_(to_weight, to_x.mT, h)
        as_given = [
            None if grad is None else grad.to(x.dtype)
            for grad, x in zip((to_weight, to_bias), (weight, bias), strict=True)
        ]
        return to_hidden, *as_given, None, None, None


def _chunks(count: int, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, count, rows)]


def _add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b; the product of a chunk is not rounded to 16 bits, or the sum of all chunks drifts."""
    total.addmm_(a.to(total.dtype), b.to(total.dtype))
