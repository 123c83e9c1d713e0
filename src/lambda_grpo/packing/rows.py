"""A trainer's padded rows → one packed row. An engine plugs tree packing in here.

Token ids alone tell what is shared, and that is always exact. Rows may be shuffled, a group that is split
over batches only shares less, and prompts that begin alike share their beginning. R is the number of rows,
L their padded length.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lambda_grpo.errors import InputError
from lambda_grpo.packing.layout import PackedTree, pack_whole
from lambda_grpo.tree import ProcessTree


def pack_rows(ids: Tensor, mask: Tensor, width: int, share: bool = True) -> PackedTree:
    """Pack a trainer's padded rows, which share every prefix they have in common, prompts included.

    Rows may come in any order: those of one group need not be neighbours.

    Args:
        ids: (R, L) integers: prompts padded on the left, then completions padded on the right.
        mask: (R, L), nonzero at real tokens. A completion that is masked whole counts as empty.
        width: the last `width` columns are the completions'.
        share: False: each row runs whole, as if no other began like it. To compare with.

    Returns:
        `index` is (R, width), in the order of the rows; -1 at padding.

    Raises:
        InputError: padding between the tokens of a row, a row without prompt, shapes that do not fit.

    >>> rows = torch.tensor([[0, 1, 5, 6], [2, 3, 5, 0], [0, 1, 5, 7]])
    >>> packed = pack_rows(rows, rows > 0, 2)
    >>> packed.ids.tolist(), packed.index.tolist()
    ([1, 5, 2, 3], [[0, 1], [3, -1], [0, 2]])
    """
    rows, prompt_lengths = _unpad(ids, mask, width)
    packed = pack_whole(ProcessTree.build(rows, None if share else range(len(rows))), prompt_lengths)
    index = torch.nn.functional.pad(packed.index, (0, width - packed.index.shape[1]), value=-1)
    return replace(packed, index=index)


def pack_rows_within(
    ids: Tensor, mask: Tensor, width: int, limit: int = 0, least: int = 1, share: bool = True
) -> list[PackedTree]:
    """The same as several packed rows of at most `limit` tokens each, one after the other.

    Where a row is too long, its completions are halved, first and last ones, so neighbours stay together. One
    completion alone may be longer than the limit.

    Args:
        ids, mask, width, share: as for `pack_rows`.
        limit: the most tokens of a packed row; 0: no limit.
        least: so many packed rows at least, at most R.

    >>> rows = torch.tensor([[1, 5, 6, 7], [1, 5, 6, 8], [1, 9, 6, 7], [1, 9, 6, 8]])
    >>> [(tree.num_tokens, len(tree.index)) for tree in pack_rows_within(rows, rows > 0, 3, limit=4)]
    [(3, 2), (3, 2)]
    """
    parts = [(0, len(ids))]
    trees = [pack_rows(ids, mask, width, share)]
    while True:
        whole = [i for i, (start, stop) in enumerate(parts) if stop - start > 1]
        worst = max(whole, key=lambda i: trees[i].num_tokens, default=None)
        if worst is None or (len(parts) >= least and (not limit or trees[worst].num_tokens <= limit)):
            return trees
        start, stop = parts[worst]
        halves = [(start, (start + stop) // 2), ((start + stop) // 2, stop)]
        parts[worst : worst + 1] = halves
        trees[worst : worst + 1] = [pack_rows(ids[a:b], mask[a:b], width, share) for a, b in halves]


def _unpad(ids: Tensor, mask: Tensor, width: int) -> tuple[list[NDArray[Any]], NDArray[np.int64]]:
    """Each row's own tokens, and how many of them are its prompt's."""
    if ids.ndim != 2 or mask.shape != ids.shape or not 0 <= width < ids.shape[1]:
        raise InputError(
            f"expected ids and mask of one shape (R, L) and width below L, got {tuple(ids.shape)}, "
            f"{tuple(mask.shape)} and {width}"
        )
    rows, real = ids.cpu().numpy(), mask.bool().cpu().numpy()
    begin = real.argmax(axis=1)
    stop = begin + real.sum(axis=1)
    place, cut = np.arange(real.shape[1]), ids.shape[1] - width
    holes = (real != ((place >= begin[:, None]) & (place < stop[:, None]))).any(axis=1)
    if holes.any():
        raise InputError(f"mask: row #{int(holes.argmax())} has padding between its tokens; pad outside only")
    if (begin >= cut).any() or not real.any(axis=1).all():
        row = int(((begin >= cut) | ~real.any(axis=1)).argmax())
        raise InputError(f"mask: row #{row} has no prompt, and something must predict its first token")
    return [row[a:b] for row, a, b in zip(rows, begin, stop, strict=True)], cut - begin
