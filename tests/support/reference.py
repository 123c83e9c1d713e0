"""The paper's definitions, literal and slow: the oracle of every test.

Nothing here is clever and nothing is shared with the fast code. Process sets are found by comparing
prefixes; everything is float64. Quadratic in completions, and again in tokens.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Completion = Sequence[int]


class ReferenceGroup:
    """One group G of completions y⁽¹⁾…y⁽ᴳ⁾, by the definitions of arXiv 2509.21154, section 3."""

    def __init__(self, completions: Sequence[Completion], contexts: Sequence[Hashable] | None = None) -> None:
        same = [None] * len(completions)
        self.completions = [tuple(int(token) for token in y) for y in completions]
        self.contexts = list(same if contexts is None else contexts)

    def shares_prefix(self, i: int, j: int, length: int) -> bool:
        """Whether completion j has the first `length` tokens of completion i."""
        y, z = self.completions[i], self.completions[j]
        return self.contexts[i] == self.contexts[j] and len(z) >= length and z[:length] == y[:length]

    def process_set(self, i: int, t: int) -> frozenset[int]:
        """λ(i,t): all completions whose first t + 1 tokens equal those of completion i."""
        return frozenset(j for j in range(len(self.completions)) if self.shares_prefix(i, j, t + 1))

    def tree(self) -> set[frozenset[int]]:
        """B(G): the root G and every process set."""
        sets = {frozenset(range(len(self.completions)))}
        for i, y in enumerate(self.completions):
            sets |= {self.process_set(i, t) for t in range(len(y))}
        return sets

    def span(self, process_set: frozenset[int]) -> tuple[int, int]:
        """(s(λ), e(λ)): the tokens whose process set is λ, on the path of any of its members."""
        member = min(process_set)
        inside = [
            t for t in range(len(self.completions[member])) if self.process_set(member, t) == process_set
        ]
        return (inside[0], inside[-1] + 1) if inside else (0, 0)

    def path(self, i: int) -> list[frozenset[int]]:
        """The process sets from the root to completion i's leaf.

        If others extend completion i, its leaf is the empty step below the node where it ends, shown
        here as an empty set.
        """
        root = frozenset(range(len(self.completions)))
        path = [root]
        for t in range(len(self.completions[i])):
            if self.process_set(i, t) != path[-1]:
                path.append(self.process_set(i, t))
        y = self.completions[i]
        duplicates = {
            j
            for j in range(len(self.completions))
            if self.contexts[j] == self.contexts[i] and self.completions[j] == y
        }
        if path[-1] != duplicates:
            path.append(frozenset())
        return path

    def path_depth(self, i: int) -> int:
        """The number of nodes strictly between the root and completion i's leaf."""
        if not self.completions[i]:
            return 0
        return max(len(self.path(i)) - 2, 0)

    def intermediate_proportion(self, i: int) -> float:
        """1 - (tokens in completion i's leaf) / (its tokens)."""
        y = self.completions[i]
        if not y:
            return 0.0
        leaf = self.path(i)[-1]
        in_leaf = sum(self.process_set(i, t) == leaf for t in range(len(y)))
        return 1 - in_leaf / len(y)

    def is_flat(self) -> bool:
        """Whether every leaf hangs off the root."""
        return all(len(self.path(i)) <= 2 for i in range(len(self.completions)))

    def advantages(self, rewards: Sequence[float], eps: float = 1e-4) -> Float64:
        """a_i = (r_i - mean r) / (std r + ε)."""
        r = np.array(rewards, np.float64)
        if len(r) == 1 or all(x == r[0] for x in r):
            return np.zeros(len(r))
        mean = sum(r) / len(r)
        std = (sum((x - mean) ** 2 for x in r) / (len(r) - 1)) ** 0.5
        return np.array([(x - mean) / (std + eps) for x in r])

    def step_advantage(self, rewards: Sequence[float], i: int, t: int, eps: float = 1e-4) -> float:
        """A(λ(i,t)) = (R̂(λ) - mean r) / (std r + ε), with R̂(λ) the mean reward of λ."""
        members = self.process_set(i, t)
        return float(sum(self.advantages(rewards, eps)[j] for j in members) / len(members))
