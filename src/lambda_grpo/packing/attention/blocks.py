"""Which blocks of a packed tree's attention are full, partial or empty; this module needs numpy only.

The tokens are cut into blocks of 128, B of them. In depth-first order token q sees token k iff
k ≤ q < end[k], where end[k] is one past the last token of k's subtree. So for a block of keys K and a later
block of queries Q

    some query sees some key    iff    max end over K > first query
    all queries see all keys    iff    min end over K > last query

and the blocks of queries that K is seen by are neighbours: three numbers a block of keys say it all. Worked
example, blocks of 2, end = 6 6 4 4 6 6 (a prompt of two tokens and two branches of two):

    K = 0: ends 6 6, all of Q = 1 and of Q = 2 see it     full, full
    K = 1: ends 4 4, nobody in Q = 2 (queries 4, 5)       empty
    Q = K: a query does not see the keys after it         partial

Under a sliding window w, a pair also needs position[q] - position[k] < w. Every ancestor of a query that lies
before Q is an ancestor of Q's first query as well, so the keys of K that matter are one stretch of one path.

Invariant: a block is empty iff no pair in it is visible, full iff all are. Nothing of size N × N is made:
time and memory are of the order N + B².
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Int32 = NDArray[np.int32]

BLOCK = 128  # what FlexAttention's kernels expect
_FEWEST = 2  # blocks: compilers make another kernel for one


@dataclass(frozen=True, eq=False)
class PaddedTree:
    """A packed tree of N tokens, padded to L, a multiple of the block; padding sees itself only.

    Attributes:
        end: (L,) one past the last token of each token's subtree.
        position: (L,) distance from the root; 0 for padding.
    """

    end: Int32
    position: Int32

    @classmethod
    def of(
        cls, subtree_end: NDArray[np.integer], position: NDArray[np.integer], block: int = BLOCK
    ) -> "PaddedTree":
        """From (N,) arrays as `PackedTree` has them."""
        n = len(subtree_end)
        length = max(-(-n // block), _FEWEST) * block
        end, where = np.arange(1, length + 1, dtype=np.int32), np.zeros(length, np.int32)
        end[:n], where[:n] = subtree_end, position
        return cls(end, where)


@dataclass(frozen=True, eq=False)
class BlockTable:
    """Blocks of (queries, keys).

    Attributes:
        some: (B, B) whether any pair is visible.
        full: (B, B) whether all are.
    """

    some: Bool
    full: Bool

    @property
    def partial(self) -> Bool:
        """(B, B) blocks that need a mask."""
        return self.some & ~self.full


def block_table(tree: PaddedTree, window: int | None = None, block: int = BLOCK) -> BlockTable:
    """Classify all blocks.

    Args:
        tree: padded to a multiple of `block`.
        window: how many tokens of its path a token sees, itself included. None: all.
        block: tokens of a block, at least 2.

    >>> tree = PaddedTree.of(np.array([6, 6, 4, 4, 6, 6]), np.array([0, 1, 2, 3, 2, 3]), block=2)
    >>> table = block_table(tree, block=2)
    >>> table.full.astype(int).tolist(), table.partial.astype(int).tolist()
    ([[0, 0, 0], [1, 0, 0], [1, 0, 0]], [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    """
    ends = tree.end.reshape(-1, block)
    number = np.arange(len(ends))
    later = number[:, None] > number  # queries after keys
    first, stop = number[:, None] * block, (number[:, None] + 1) * block  # of the queries
    some = later & (ends.max(axis=1) > first)
    full = later & (ends.min(axis=1) >= stop)
    if window is not None:
        where = tree.position.reshape(-1, block)
        some &= _nearest_query(ends, where, window) - _farthest_key(ends, where) < window
        full &= where.max(axis=1)[:, None] - where[:, 0] < window
    some[number, number] = True
    return BlockTable(some, full)


def _nearest_query(ends: Int32, where: Int32, window: int) -> NDArray[np.integer]:
    """(B, B) the least position among the queries that see a key of the block, were there no window.

    These are the first ones of their block, up to the last subtree's end. A query that is `window` below its
    topmost ancestor in its own block sees no earlier block, so it does not count. That ancestor's position is
    the least so far, because a depth-first walk climbs above it only to leave its subtree.
    """
    count, block = ends.shape
    topmost = np.minimum.accumulate(where, axis=1)
    reaches = where - topmost + 1 < window
    nearest = np.minimum.accumulate(np.where(reaches, where, np.iinfo(np.int32).max // 2), axis=1)
    queries = np.clip(ends.max(axis=1) - block * np.arange(count)[:, None], 1, block)
    return np.take_along_axis(nearest, queries - 1, axis=1)


def _farthest_key(ends: Int32, where: Int32) -> NDArray[np.integer]:
    """(B, B) the greatest position among the keys of a block that the queries' first token sees.

    Such keys are that token's ancestors, so the last of them is the farthest from the root. Key j is seen
    from block r[j] at most, and the last key seen from a block is the greatest j with r[j] ≥ that block.
    """
    count, block = ends.shape
    last_block = np.maximum.accumulate(ends[:, ::-1], axis=1)[:, ::-1] - 1  # of a key, or one after it
    last_block //= block
    last = np.zeros((count, count), np.int32)  # (keys, queries)
    keys = np.broadcast_to(np.arange(block, dtype=np.int32), ends.shape)
    np.maximum.at(last, (np.arange(count)[:, None], last_block), keys)
    last = np.maximum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
    return np.take_along_axis(where, last, axis=1).T


def ordered(table: Bool) -> tuple[Int32, Int32]:
    """(B,) how many entries of each row are true, and (B, B) their columns first, both ascending."""
    order = np.argsort(~table, axis=1, kind="stable").astype(np.int32)
    return table.sum(axis=1, dtype=np.int32), order
