"""Which groups the page shows in full, and the texts of their steps.

A page of bounded size cannot hold every group. The page keeps two halves, of all runs together. One half are
the groups that show most: a best completion that is pushed down, rewards that differ, deep trees. The other
half is a fair draw: the lowest checksums of step and group, so that runs side by side show the same prompts.
Texts beyond a budget of bytes are left out too, the last drawn first.
"""

import heapq
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lambda_grpo import measures
from lambda_grpo.report.analysis import step_columns
from lambda_grpo.report.forks import fork_content
from lambda_grpo.rollouts import Group
from lambda_grpo.rollouts.group import FROM_IDS
from lambda_grpo.rollouts.tokens import FALLBACK, Tokeniser, pieces
from lambda_grpo.tree import ProcessTree

Row = Mapping[str, Any]


@dataclass
class Sample:
    """The groups kept so far, at most `places`; offer every group with `offer`."""

    places: int
    _best: list[tuple[Any, ...]] = field(default_factory=list)  # heaps; smallest key first
    _drawn: list[tuple[Any, ...]] = field(default_factory=list)
    _count: int = 0

    def offer(self, group: Group, tree: ProcessTree, row: Row) -> None:
        """Keep the group if it outranks one that is kept. Its arrays are copied, because they are views
        of a whole batch."""
        self._count += 1
        draw = zlib.crc32(f"{group.step} {group.name}".encode("utf-8", "surrogatepass"))
        for heap, key in ((self._best, _score(row)), (self._drawn, -draw)):
            entry = (key, -self._count)  # the count makes keys unique, the earlier group ahead
            if len(heap) < self.places:
                heapq.heappush(heap, (*entry, own_copy(group), dict(row)))
            elif entry > heap[0][:2]:
                heapq.heapreplace(heap, (*entry, own_copy(group), dict(row)))

    def chosen(self) -> list[tuple[Group, Row]]:
        """Best and drawn in turn, each group once."""
        ranked = [
            sorted(heap, key=lambda entry: entry[:2], reverse=True) for heap in (self._best, self._drawn)
        ]
        kept: dict[int, tuple[Group, Row]] = {}
        for place in range(max(map(len, ranked), default=0)):
            for heap in ranked:
                if place < len(heap) and len(kept) < self.places:
                    kept.setdefault(heap[place][1], heap[place][2:])
        return list(kept.values())


def _score(row: Row) -> float:
    """How much a group has to show: a pushed-down best completion, rewards that differ, depth."""
    down = row["best_share_down_grpo"]
    pushed = 0.0 if np.isnan(down) else 2 * down
    return float(pushed + (row["spread"] > 0) + min(np.nan_to_num(row["path_depth"]), 10) / 10)


def own_copy(group: Group) -> Group:
    """The group with arrays of its own, without its prompts' ids."""
    return replace(group, token_ids=[ids.copy() for ids in group.token_ids], prompt_ids=())


def group_content(group: Group, row: Row, tokeniser: Tokeniser | None) -> dict[str, Any]:
    """Everything the page shows of one group, ready for JSON; nodes as columns."""
    tree = ProcessTree.build(group.token_ids, group.contexts.tolist())
    if tokeniser and group.tokens_from == FROM_IDS and tokeniser.misfit(group.texts, group.token_ids):
        tokeniser = None  # another policy's: the completions as saved tell more
    texts, exact = step_texts(group, tree, tokeniser)
    return {
        **{name: row[name] for name in row if name not in ("run", "step", "group")},
        "run": group.run,
        "step": group.step,
        "group": group.name,
        "prompt": group.prompt,
        "prompts_differ": bool(group.contexts.any()),
        "tokens_from": group.tokens_from,
        "texts_exact": exact,
        "rewards": group.rewards.tolist(),
        "advantages": group.advantages.tolist(),
        "lengths": tree.lengths.tolist(),
        "leaf": tree.leaf.tolist(),
        "order": tree.order.tolist(),
        "nodes": node_columns(group, tree) | {"text": texts},
        **fork_content(group, tree),
    }


def node_columns(group: Group, tree: ProcessTree) -> dict[str, list[float]]:
    """The numbers of each process step: the tree's, R̂(λ), A(λ), what either credit pushes a token of it by
    (`measures.gradient_weight`), and its share of the group's |gradient weight|, nan if there is none."""
    columns = {name: getattr(tree, name) for name in ("parent", "start", "end", "size", "depth", "first")}
    columns |= step_columns(group, tree)
    columns["advantage"] = columns["advantage"].round(9)
    for credit, weights in (("grpo", np.ones(tree.num_steps)), ("lambda", 1 / tree.size)):
        push = measures.gradient_weight(tree, group.advantages, weights)
        mass = np.abs(push) * (tree.end - tree.start)
        columns[f"push_{credit}"] = push
        columns[f"share_{credit}"] = mass / mass.sum() if mass.any() else np.full(tree.num_steps, np.nan)
    return {name: values.tolist() for name, values in columns.items()}


def step_texts(group: Group, tree: ProcessTree, tokeniser: Tokeniser | None) -> tuple[list[str], bool]:
    """The text of each step, and whether it is exact.

    Exact if the tokens' own strings or the policy's tokenizer are at hand. Else steps are found in the
    completions' texts by their common characters: a step's end may be off by a part of a token. Along a
    path the texts join to the whole completion in any case, except that half a character at the end of a
    completion is not shown if another completion goes on there.
    """
    # The last completion of a step: if any of them goes on after the step, this one does.
    member = tree.order[tree.first + tree.size - 1].tolist()
    spans = list(zip(member, tree.start.tolist(), tree.end.tolist(), strict=True))
    strings = group.token_texts
    if group.tokens_from == FALLBACK:
        strings = [pieces(text) for text in group.texts]
    if strings:
        return ["".join(strings[i][a:b]) for i, a, b in spans], True
    if tokeniser:
        return [_decoded(tokeniser, group.token_ids[i], a, b) for i, a, b in spans], True
    if group.texts:
        return _by_characters(group.texts, tree), False
    return [" ".join(map(str, group.token_ids[i][a:b])) + " " for i, a, b in spans], False


def _decoded(tokeniser: Tokeniser, ids: Any, start: int, end: int) -> str:
    """What tokens start:end add to the text; a character cut by a step's end belongs to the next step."""
    before = tokeniser.decode(ids[:start].tolist()).rstrip("\ufffd") if start else ""
    until = tokeniser.decode(ids[:end].tolist())
    if end < len(ids):
        until = until.rstrip("\ufffd")
    return until[len(before) :]


def _by_characters(texts: Sequence[str], tree: ProcessTree) -> list[str]:
    ends = np.zeros(tree.num_steps, np.int64)
    out = []
    for node, (first, size) in enumerate(zip(tree.first.tolist(), tree.size.tolist(), strict=True)):
        members = [texts[i] for i in tree.order[first : first + size]]
        begin = int(ends[tree.parent[node]]) if node else 0
        low, high = min(members), max(members)
        end = next((k for k, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1]), len(low))
        if tree.end[node] == tree.start[node]:
            end = begin  # a root without a common prefix
        ends[node] = max(begin, end)
        out.append(members[0][begin : ends[node]])
    return out
