"""Credit for rollouts that a trainer stores as several rows each.

An agent's rollout may become several training rows, one per call of the model. Their prompts differ, because
the history grows or is rewritten. So trees are built over prompt + response, and |λ| must count rollouts, not
rows. Two steps turn rows into what a credit expects, one completion per rollout:

1. A row that begins another row of its rollout is merged into it. The rows that are left are the rollout's
   *strands* (one, if the history only grows). A strand's policy tokens are those of all its rows.
2. If a rollout has several strands, each is credited together with one strand of every other rollout: the
   one that shares the longest prefix with it. For every token of that strand, a rollout is then in λ
   exactly if any of its rows begins with the same tokens.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lambda_grpo import measures
from lambda_grpo.credit import Credit, TokenCredit
from lambda_grpo.tree import ProcessTree


@dataclass(frozen=True, eq=False)
class Row:
    """One row of a batch: a prompt and the response to it.

    Attributes:
        group, rollout: ids; rows of one rollout have the same.
        ids: integer token ids of prompt and response.
        mask: bool, as long as `ids`: the policy's tokens, none of them in the prompt.
        reward, advantage: the rollout's.
    """

    group: Hashable
    rollout: Hashable
    ids: NDArray[Any]
    mask: NDArray[np.bool_]
    reward: float
    advantage: float


@dataclass(frozen=True, eq=False)
class _Strand:
    """Rows of one rollout that each begin the next longer one; `rows` are their numbers."""

    ids: NDArray[Any]
    mask: NDArray[np.bool_]
    rows: list[int]


@dataclass(frozen=True, eq=False)
class _View:
    """One strand per rollout of a group; the strands in `own` get their credit from it."""

    strands: list[_Strand]
    own: list[int]


def credit_rows(rows: Sequence[Row], credit: Credit) -> tuple[list[TokenCredit], dict[str, float]]:
    """Give every token of every row its credit.

    Args:
        rows: those of whole groups, in any order.
        credit: from `lambda_grpo.credit`, its own parameters bound.

    Returns:
        Per row, advantage and weight (len(ids),) float32, zero where its mask is false; and the means that
        the engines log, by name.

    Raises:
        InputError: token ids that are none, or numbers that are not finite.
    """
    views = [view for group in _groups(rows) for view in _views(group)]
    completions = [strand.ids for view in views for strand in view.strands]
    numbers = [number for number, view in enumerate(views) for _ in view.strands]
    found: dict[int, TokenCredit] = {}
    trees = ProcessTree.build_many(completions, numbers)
    parts: list[measures.Totals] = []
    weight = 0.0
    for view, tree in zip(views, trees, strict=True):
        mask = np.zeros(tree.step_index.shape, bool)
        for i, strand in enumerate(view.strands):
            mask[i, : len(strand.mask)] = strand.mask
        first = [rows[strand.rows[0]] for strand in view.strands]
        result = credit(
            tree, [row.reward for row in first], advantages=[row.advantage for row in first], mask=mask
        )
        parts.append(measures.totals_of_rows(tree, mask, view.own))
        weight += float(result.weight[view.own].sum())
        for i in view.own:
            for number in view.strands[i].rows:
                own = rows[number].mask
                tokens = slice(len(own))
                found[number] = TokenCredit(result.advantage[i, tokens] * own, result.weight[i, tokens] * own)
    totals = measures.summed(parts)
    fractions = totals.fractions() | {"credit/mean_weight": (weight, totals.tokens)}
    means = {name: total / max(count, 1) for name, (total, count) in fractions.items()}
    return [found[number] for number in range(len(rows))], means


def _groups(rows: Sequence[Row]) -> list[list[list[_Strand]]]:
    """Per group, per rollout, its strands."""
    groups: dict[Hashable, dict[Hashable, list[int]]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.group, {}).setdefault(row.rollout, []).append(number)
    return [[_strands(rows, numbers) for numbers in rollouts.values()] for rollouts in groups.values()]


def _strands(rows: Sequence[Row], numbers: list[int]) -> list[_Strand]:
    """Merge the rows of one rollout, longest first; a row that begins several strands joins the first."""
    strands: list[_Strand] = []
    for number in sorted(numbers, key=lambda number: -len(rows[number].ids)):
        row = rows[number]
        holders = [strand for strand in strands if _shared(strand.ids, row.ids) == len(row.ids)]
        for strand in holders:  # its policy tokens are on all of them
            strand.mask[: len(row.mask)] |= row.mask
        if holders:
            holders[0].rows.append(number)
        else:
            strands.append(_Strand(row.ids, row.mask.copy(), [number]))
    return strands


def _views(rollouts: list[list[_Strand]]) -> list[_View]:
    if all(len(strands) == 1 for strands in rollouts):
        return [_View([strands[0] for strands in rollouts], list(range(len(rollouts))))]
    return [
        _View(
            [strand if k == i else _nearest(strand, strands) for k, strands in enumerate(rollouts)],
            [i],
        )
        for i, own in enumerate(rollouts)
        for strand in own
    ]


def _nearest(strand: _Strand, others: list[_Strand]) -> _Strand:
    """Of another rollout's strands, the one that shares the longest prefix."""
    return others[int(np.argmax([_shared(strand.ids, other.ids) for other in others]))]


def _shared(a: NDArray[Any], b: NDArray[Any]) -> int:
    """How many tokens two sequences begin with in common."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length
