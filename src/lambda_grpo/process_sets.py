"""Rows of token ids → their process sets, for a whole batch of groups in one pass.

The rows are sorted, so that each process set becomes a run of neighbours, and the length of the longest
common prefix (LCP) of each pair of neighbours is found by comparing blocks. Process sets are then the LCP
intervals of that list, found with one stack. Work is proportional to tokens; Python loops run over rows and
nodes only.

B is the number of rows and N the number of nodes; `flat` holds all rows end to end, padded
as `tree._flatten` says.
"""

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]

_FIRST_BLOCK = 64  # tokens of neighbours compared at first
_MAX_COMPARED = 2**22  # tokens compared at a time, which bounds the memory taken


def sort_rows(
    flat: Int32, offsets: NDArray[np.int64], lengths: Int32, keys: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The rows by key, then by token ids, a prefix before its extensions, then by position."""
    ids = flat.astype(">u4").tobytes()  # big-endian, so that bytes compare as token ids do
    bounds = zip((4 * offsets).tolist(), (4 * (offsets + lengths)).tolist(), strict=True)
    rows = [ids[a:b] for a, b in bounds]
    by_ids = np.array(sorted(range(len(rows)), key=rows.__getitem__), np.int64)
    return by_ids[np.argsort(keys[by_ids], kind="stable")]


def common_prefixes(flat: Int32, begin: NDArray[np.int64], lengths: Int32) -> Int32:
    """(B - 1,): how many tokens each row shares with the next one.

    Neighbours are compared in blocks that grow fourfold, and only while they are still equal, so the
    work is proportional to the tokens shared, not to the length of the rows.
    """
    limit = np.minimum(lengths[:-1], lengths[1:])
    shared = limit.copy()
    equal = np.flatnonzero(limit)  # pairs that agree on the first `done` tokens, with some left
    done, width = 0, _FIRST_BLOCK
    while len(equal):
        width = min(width, int(limit[equal].max()) - done)
        blocks = np.lib.stride_tricks.sliding_window_view(flat, width)
        still_equal = []
        for pairs in np.array_split(equal, -(-len(equal) * width // _MAX_COMPARED)):
            differ = blocks[begin[pairs] + done] != blocks[begin[pairs + 1] + done]
            at = differ.argmax(axis=1)
            differs = differ[np.arange(len(pairs)), at]
            where = np.where(differs, done + at, done + width)
            shared[pairs] = np.minimum(where, limit[pairs])
            still_equal.append(pairs[~differs & (limit[pairs] > done + width)])
        equal = np.concatenate(still_equal)
        done, width = done + width, 4 * width
    return shared


def find_process_sets(lcp: Int32, lengths: Int32) -> tuple[Int32, Int32, Int32]:
    """All process sets as runs of sorted rows [lo, hi) with common prefix `end`, in pre-order.

    A set of several rows is an LCP interval: a run whose inner `lcp` are at least `end`, with
    equality somewhere, and whose outer ones are smaller. A row that reaches beyond what it shares
    with either neighbour is a set of its own.
    """
    lo, hi, end = [], [], []
    open_lo: list[int] = []
    open_end: list[int] = []  # strictly increasing: the sets that hold the current row
    for row, prefix in enumerate(lcp.tolist()):
        begin = row - 1
        while open_end and open_end[-1] > prefix:
            begin = open_lo.pop()
            lo.append(begin)
            hi.append(row)
            end.append(open_end.pop())
        if prefix >= 0 and (not open_end or open_end[-1] < prefix):
            open_lo.append(begin)
            open_end.append(prefix)
    alone = np.flatnonzero(lengths > np.maximum(lcp[:-1], lcp[1:]))
    los = np.concatenate([np.array(lo, np.int32), alone.astype(np.int32)])
    his = np.concatenate([np.array(hi, np.int32), alone.astype(np.int32) + np.int32(1)])
    ends = np.concatenate([np.array(end, np.int32), lengths[alone]])
    preorder = np.lexsort((ends, los))
    return los[preorder], his[preorder], ends[preorder]


def link(lo: Int32, hi: Int32, num_rows: int) -> tuple[Int32, Int32, Int32]:
    """Parent (N,) and depth (N,) of each node, and the deepest node (B,) of each sorted row."""
    parent, depth = [], []
    leaf = np.empty(num_rows, np.int32)
    path = [-1]
    ends = [num_rows + 1]
    for node, (a, b) in enumerate(zip(lo.tolist(), hi.tolist(), strict=True)):
        while ends[-1] <= a:
            ends.pop()
            path.pop()
        parent.append(path[-1])
        depth.append(len(path) - 1)
        if b - a > 1:
            leaf[a:b] = node  # later nodes of the pre-order lie deeper
        path.append(node)
        ends.append(b)
    alone = np.flatnonzero(hi - lo == 1)
    leaf[lo[alone]] = alone
    return np.array(parent, np.int32), np.array(depth, np.int32), leaf
