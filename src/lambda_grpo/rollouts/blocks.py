"""The column `block` of a rollout file → the blocks of a branch plan that sampled a group's completions.

A block is sampled once: its completions share its tokens, and all tokens before them, on purpose. Sharing
that no block explains is coincidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lambda_grpo.rollouts.values import BadRow, Int32, token_ids


@dataclass(frozen=True)
class Block:
    """Tokens that were sampled once for several completions of a group, or for one.

    Attributes:
        number: what the file calls it.
        parent: the place in the group's blocks of the block that it forked from; -1 for a root.
        start, end: its tokens, counted after the prompt.
        members: the completions that share them, ascending.
    """

    number: int
    parent: int
    start: int
    end: int
    members: tuple[int, ...]


def blocks_of(
    values: Sequence[Any], completions: Sequence[Int32], contexts: NDArray[np.int64]
) -> list[Block]:
    """The blocks of a group, each after its parent.

    Args:
        values: G lists, the number of the block that sampled each token.
        completions: G token id arrays.
        contexts: (G,) equal where prompts are equal.

    Raises:
        BadRow: no list of integers, not one for each token, or completions of one block with other tokens.
    """
    found: list[tuple[int, int, int, int]] = []
    members: list[list[int]] = []
    place_of: dict[int, int] = {}
    for i, value in enumerate(values):
        numbers = token_ids(i, value, "block")
        if len(numbers) != len(completions[i]):
            raise BadRow(
                i, f"block has {len(numbers)} numbers for {len(completions[i])} tokens, expected one for each"
            )
        parent = -1
        for start, end in _runs(numbers):
            block = (int(numbers[start]), parent, start, end)
            place = place_of.setdefault(block[0], len(found))
            if place == len(found):
                found.append(block)
                members.append([])
            elif found[place] != block or not _same(completions, contexts, i, members[place][0], end):
                raise BadRow(
                    i,
                    f"block {block[0]} holds tokens {start} to {end - 1} here, and other ones in an earlier "
                    "row of its group, expected the same: a block is sampled once",
                )
            members[place].append(i)
            parent = place
    return [Block(*block, tuple(rows)) for block, rows in zip(found, members, strict=True)]


def _runs(numbers: Int32) -> list[tuple[int, int]]:
    """Where equal neighbours begin and end."""
    if not len(numbers):
        return []
    cuts = (np.flatnonzero(np.diff(numbers)) + 1).tolist()
    return list(zip([0, *cuts], [*cuts, len(numbers)], strict=True))


def _same(completions: Sequence[Int32], contexts: NDArray[np.int64], one: int, other: int, end: int) -> bool:
    """Whether two completions of one prompt have the same tokens before `end`."""
    prompts = contexts[one] == contexts[other]
    return bool(prompts and np.array_equal(completions[one][:end], completions[other][:end]))
