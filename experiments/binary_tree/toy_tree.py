"""The toy environment of the paper (section 4.3): paths down a binary tree, one of which is the target.

A path of `DEPTH` tokens, each L or R, is a leaf: a number whose bits, the first token's the highest, are 1
for R. Rewards depend on the path only as seen from the target: `leaf XOR target` is 0 for the target itself
and small where much of the beginning is shared. Inner nodes are numbered as in a heap, so the children of
node k are 2k + 1 (L) and 2k + 2 (R), and edge 2k + token leads from k to one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.binary_tree.stacked_gpt2 import TokenTree
from lambda_grpo.errors import InputError

DEPTH = 4
LEAVES = 2**DEPTH
NODES = LEAVES - 1

Rewards = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One setting of the rewards.

    Attributes:
        mode: which of GRPO's failures it provokes, `anti-exploitation` (the paper's six cells: the target's
            prefix is pushed down from the first step on, since bad paths share it) or `anti-exploration`
            (no prefix of the target is pushed down at first, but four good paths crowd it out).
        r_neg: reward of the bad paths.
        n: tokens that the bad paths share with the target (anti-exploitation only).
    """

    mode: str
    r_neg: float
    n: int = 0

    @property
    def name(self) -> str:
        return f"n={self.n}, r_neg={self.r_neg:g}" if self.n else f"crowd, r_neg={self.r_neg:g}"

    def rewards(self) -> Rewards:
        """(16,) the reward of each `leaf XOR target`.

        >>> Cell("anti-exploitation", -1.5, n=2).rewards()[:6]
        array([ 1. , -1.5, -1.5, -1.5,  0.7,  0.7])
        >>> Cell("anti-exploration", -1.5).rewards()[6:14]
        array([ 0. ,  0. ,  0.7,  0.7,  0.7,  0.7, -1.5, -1.5])
        """
        seen = np.full(LEAVES, 0.7)
        if self.mode == "anti-exploitation":
            seen[: 2 ** (DEPTH - self.n)] = self.r_neg
        elif self.mode == "anti-exploration":
            seen[: LEAVES // 2] = 0.0
            seen[-LEAVES // 4 :] = self.r_neg
        else:
            raise InputError(f"mode: expected anti-exploitation or anti-exploration, got {self.mode!r}")
        seen[0] = 1.0
        return seen


def layout(start: int, tokens: Sequence[int]) -> TokenTree:
    """The 15 inner nodes as tokens: `start` at the root, below it the two `tokens` L and R."""
    ids = [start] + [tokens[(node - 1) % 2] for node in range(1, NODES)]
    return TokenTree.from_parents(ids, [-1] + [(node - 1) // 2 for node in range(1, NODES)])


def walk(log_probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Sample paths: (M, G, 4) edges.

    Args:
        log_probs: (M, 15, 2) of L and R at each inner node, no gradient needed.
        uniforms: (M, G, 4) in [0, 1): a token is R where its number is below the probability of R.
    """
    right = log_probs[..., 1].exp()
    node = torch.zeros(uniforms.shape[:2], dtype=torch.int64)
    edges = []
    for step in range(DEPTH):
        bit = (uniforms[..., step] < right.gather(1, node)).long()
        edges.append(2 * node + bit)
        node = 2 * node + 1 + bit
    return torch.stack(edges, dim=-1)


def leaves(edges: torch.Tensor) -> torch.Tensor:
    """(…, 4) edges → (…) the leaf that each path ends in."""
    return edges[..., -1] - 2 * (LEAVES // 2 - 1)


def path(leaf: int) -> list[int]:
    """The four edges to a leaf.

    >>> path(0b1010), leaves(torch.tensor(path(0b1010))).item() == 0b1010
    ([1, 4, 11, 24], True)
    """
    edges, node = [], 0
    for step in range(DEPTH):
        bit = leaf >> (DEPTH - 1 - step) & 1
        edges.append(2 * node + bit)
        node = 2 * node + 1 + bit
    return edges
