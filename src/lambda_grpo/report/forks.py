"""What a branch plan did to a group: where it forked, and which sharing is sampled and which coincidence.

A token is *sampled* sharing if its block holds several completions: it was drawn once for all of them. It is
*coincidental* sharing if |λ| is larger than that: other blocks drew the same beginning. One token may be
both. A fork is where completions of one block go on in several. Its *value difference* is the largest minus
the smallest mean reward of these parts. With few completions a part, much of it is chance.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from lambda_grpo.report.verdict import number, percent
from lambda_grpo.rollouts import Block, Group
from lambda_grpo.tree import ProcessTree


@dataclass(frozen=True)
class Fork:
    """Where completions of one block part.

    Attributes:
        depth: tokens before it.
        block: the number of the block that parts here.
        parts: the completions of each block that begins here, then those that end here, if any.
        rewards: the mean reward of each part; None if no completion of it is scored.
    """

    depth: int
    block: int
    parts: Sequence[tuple[int, ...]]
    rewards: Sequence[float | None]

    @property
    def difference(self) -> float | None:
        """The value difference; None unless two parts are scored."""
        known = [reward for reward in self.rewards if reward is not None]
        return max(known) - min(known) if len(known) > 1 else None


def forks_of(group: Group) -> list[Fork]:
    """The forks of a group, by depth and first completion."""
    parts: dict[int, list[tuple[int, ...]]] = {}
    for block in group.blocks:
        parts.setdefault(block.parent, []).append(block.members)
    forks = []
    for place, block in enumerate(group.blocks):
        begun = parts.get(place, [])
        ended = set(block.members).difference(*begun)
        if begun and ended:
            begun = [*begun, tuple(sorted(ended))]
        if len(begun) > 1:
            forks.append(Fork(block.end, block.number, begun, [_mean_reward(group, part) for part in begun]))
    return sorted(forks, key=lambda fork: (fork.depth, fork.parts[0]))


def _mean_reward(group: Group, members: Sequence[int]) -> float | None:
    rewards = group.rewards[list(members)]
    known = rewards[~np.isnan(rewards)]
    return float(known.mean()) if len(known) else None


def sharing(group: Group, tree: ProcessTree) -> dict[str, int]:
    """Of a group's tokens: how many were `drawn_tokens`, counting each block once, how many are
    `sampled_sharing`, and how many `coincidental_sharing`."""
    sizes = tree.size.tolist()
    counts = {"drawn_tokens": 0, "sampled_sharing": 0, "coincidental_sharing": 0}
    for block in group.blocks:
        members, length = len(block.members), block.end - block.start
        counts["drawn_tokens"] += length
        counts["sampled_sharing"] += members * length if members > 1 else 0
        also = sum(end - start for node, start, end in _steps_of(tree, block) if sizes[node] > members)
        counts["coincidental_sharing"] += members * also
    return counts


def draws(group: Group, tree: ProcessTree) -> list[list[list[int]]]:
    """Of each process step that several completions share: [start, end, how many blocks drew its tokens]."""
    changes: list[list[tuple[int, int]]] = [[] for _ in range(tree.num_steps)]
    for block in group.blocks:
        for node, start, end in _steps_of(tree, block):
            changes[node] += [(start, 1), (end, -1)]
    return [_spans(sorted(own)) if size > 1 else [] for own, size in zip(changes, tree.size, strict=True)]


def _spans(changes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Places where a count changes → [start, end, count], neighbours with equal counts joined."""
    spans: list[list[int]] = []
    count = last = 0
    for place, same in groupby(changes, key=lambda change: change[0]):
        if count and place > last:
            if spans and spans[-1][2] == count:
                spans[-1][1] = place
            else:
                spans.append([last, place, count])
        count, last = count + sum(change for _, change in same), place
    return spans


def _steps_of(tree: ProcessTree, block: Block) -> Iterator[tuple[int, int, int]]:
    """The process steps that a block lies in, deepest first: node, and the tokens in both."""
    node = int(tree.leaf[block.members[0]])
    while node >= 0 and tree.end[node] > block.start:
        start, end = max(int(tree.start[node]), block.start), min(int(tree.end[node]), block.end)
        if start < end:
            yield node, start, end
        node = int(tree.parent[node])


def fork_content(group: Group, tree: ProcessTree) -> dict[str, Any]:
    """What the page shows of the forks of one group, ready for JSON; nothing if it did not fork."""
    if not group.blocks:
        return {}
    forks = [
        {
            "depth": fork.depth,
            "block": fork.block,
            "parts": [list(part) for part in fork.parts],
            "rewards": list(fork.rewards),
            "difference": fork.difference,
        }
        for fork in forks_of(group)
    ]
    return {"branching": {**sharing(group, tree), "forks": forks, "draws": draws(group, tree)}}


@dataclass
class RunForks:
    """The forks of one run, summed over its groups."""

    counts: dict[str, int] = field(default_factory=dict)
    differences: dict[int, list[float | None]] = field(default_factory=dict)  # of the forks at each depth

    def add(self, group: Group, tree: ProcessTree) -> None:
        """Count a group that has blocks."""
        more = {"groups": 1, "tokens": int(tree.lengths.sum()), **sharing(group, tree)}
        for name, value in more.items():
            self.counts[name] = self.counts.get(name, 0) + value
        for fork in forks_of(group):
            self.differences.setdefault(fork.depth, []).append(fork.difference)

    def content(self, groups: int) -> dict[str, Any]:
        """The counts, the forks at each depth with their mean value difference, and a sentence about them;
        `groups` is how many the run has."""
        depths = [
            {"depth": depth, "forks": len(all_), "difference": _mean(all_)}
            for depth, all_ in sorted(self.differences.items())
        ]
        known = [value for all_ in self.differences.values() for value in all_]
        whole = {**self.counts, "difference": _mean(known), "depths": depths}
        return {**whole, "sentence": _sentence(whole, groups)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _sentence(whole: Mapping[str, Any], groups: int) -> str:
    tokens = whole["tokens"] or 1
    drawn, sampled, also = (
        percent(whole[name] / tokens) for name in ("drawn_tokens", "sampled_sharing", "coincidental_sharing")
    )
    places = _places([depth["depth"] for depth in whole["depths"]])
    which = (
        "Completions" if whole["groups"] == groups else f"In {whole['groups']} of {groups} groups completions"
    )
    return (
        f"{which} fork on purpose{places}: {drawn} of the tokens were drawn, {sampled} are shared "
        f"because a fork drew them once, and {also} are shared with other blocks by "
        f"coincidence{_values(whole)}."
    )


def _places(depths: Sequence[int]) -> str:
    if not depths:
        return ", but all of them ended before their forks"
    if len(depths) > 3:
        return f" after tokens {depths[0]} to {depths[-1]}"
    return f" after token{'s' * (len(depths) > 1)} {' and '.join(map(str, depths))}"


def _values(whole: Mapping[str, Any]) -> str:
    if whole["difference"] is None:
        return ""
    known = [depth for depth in whole["depths"] if depth["difference"] is not None]
    text = f"; the parts of a fork differ by {number(whole['difference'])} in mean reward"
    if 1 < len(known) <= 3:
        each = ", ".join(f"{number(depth['difference'])} after token {depth['depth']}" for depth in known)
        text += f" ({each})"
    return text
