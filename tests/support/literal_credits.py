"""The credits by their definitions, with plain loops over process sets; nothing is shared with the fast code."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from reference import ReferenceGroup

Completions = Sequence[Sequence[int]]


@dataclass
class Case:
    """One group; its advantages are slope · reward + shift."""

    completions: Completions
    rewards: Sequence[float]
    mask: np.ndarray  # (G, T)
    slope: float
    shift: float

    @property
    def advantages(self) -> list[float]:
        return [self.slope * r + self.shift for r in self.rewards]


def plain(completions: Completions, rewards: Sequence[float]) -> Case:
    """GRPO's own advantages, every token in the loss."""
    mask = np.ones((len(completions), max(map(len, completions))), bool)
    if len(rewards) == 1 or min(rewards) == max(rewards):
        return Case(completions, rewards, mask, 0.0, 0.0)
    mean = math.fsum(rewards) / len(rewards)
    std = math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    return Case(completions, rewards, mask, 1 / (std + 1e-4), -mean / (std + 1e-4))


def literal(
    name: str, case: Case, tau: float = 0.3, group: ReferenceGroup | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(G, T) advantage and weight of the credit `name`; `group` holds the case's completions, if it is at hand."""
    group, a = group or ReferenceGroup(case.completions), case.advantages
    advantage, weight = np.zeros((2, *case.mask.shape))
    tokens = [(i, t) for i, y in enumerate(case.completions) for t in range(len(y)) if case.mask[i, t]]
    counted = {i for i, y in enumerate(case.completions) if not y or any(case.mask[i, : len(y)])}

    def mean(members: frozenset[int]) -> float:
        values = [a[j] for j in members if j in counted]
        return sum(values) / len(values) if values else 0.0

    def soft_maximum(members: frozenset[int]) -> float:
        r = [case.rewards[j] for j in members if j in counted]
        if not r:
            return 0.0
        soft = max(r) + tau * math.log(sum(math.exp((x - max(r)) / tau) for x in r) / len(r))
        return case.slope * soft + case.shift

    paths = [group.path(i) for i in range(len(a))]
    for i, t in tokens:
        step, path = group.process_set(i, t), paths[i]
        at = path.index(step)
        change = mean(step) - mean(path[at - 1]) if at else 0.0
        # `branch` of a group that did not fork: against all the others.
        others = frozenset(range(len(a))) - {i}
        subgroups = [s for s in path[1:] if len(s & counted) > 1]
        advantage[i, t] = {
            "process": lambda s=step: mean(s),
            "optimistic": lambda s=step: soft_maximum(s),
            "tempo": lambda i=i, t=t, s=step, c=change: a[i] + (c if t == group.span(s)[0] else 0),
            "vineppo": lambda c=change: c,
            "branch": lambda i=i, o=others: a[i] - mean(o) if o & counted else 0.0,
            "treepo": lambda i=i, s=subgroups: (a[i] + sum(a[i] - mean(g) for g in s)) / (1 + len(s)),
        }.get(name, lambda i=i: a[i])()
        weight[i, t] = 1 / len(step) if name.startswith("lambda_grpo") or name == "optimistic" else 1
    mass = {"lambda_grpo_matched": [abs(x) for x in a], "lambda_grpo_unique": [1.0] * len(a)}.get(name)
    if mass:
        weighted = sum(mass[i] * weight[i, t] for i, t in tokens)
        weight *= sum(mass[i] for i, t in tokens) / weighted if weighted else 1
    return advantage, weight
