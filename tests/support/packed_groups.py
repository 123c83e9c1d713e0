"""Groups to pack, and their loss and gradients."""

from typing import Any

import torch

from lambda_grpo import ProcessTree
from lambda_grpo.packing import PackedTree, join, pack

Groups = list[tuple[list[int], list[list[int]]]]


GROUPS: Groups = [
    ([1, 2, 3], [[5, 6, 7, 8, 1, 9], [5, 6, 9, 2], [5, 6], [5, 6, 9, 2, 7, 7, 7], [11, 3, 4, 4, 4]]),
    ([4], [[5, 6, 7, 8], [5, 6, 7, 8], [2]]),
    ([9, 9, 1, 2, 3, 5], [[1, 2], [], [1]]),
]


def packed_of(groups: Groups) -> PackedTree:
    return join([pack(prompt, ProcessTree.build(rows)) for prompt, rows in groups])


def loss_of(logps: torch.Tensor) -> torch.Tensor:
    """Token-wise in part and, as GSPO's, of whole completions in part."""
    weights = torch.linspace(-1, 1, logps.numel(), dtype=logps.dtype, device=logps.device).view(logps.shape)
    return (weights * logps).sum() + logps.mean(dim=1).exp().sum()


def gradients(model: Any, logps: torch.Tensor) -> list[torch.Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss_of(logps), parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
