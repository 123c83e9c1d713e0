"""Which queries attend to which keys in a packed tree, as few dense pieces; this module needs numpy only.

Token q of a packed tree may see token k iff k ≤ q < end[k], where end[k] is one past the last token of k's
subtree (and, under a sliding window w, position[q] - position[k] < w). The N×N mask of it is never made.

Invariant: a plan covers every visible pair exactly once, and no other pair.

The tokens are cut into *chains*, runs in which each token is the parent of the next. There are as many as
the trees have leaves, however many nodes lie above them. A chain sees itself causally, and sees the whole
path above its first token: two pieces without a mask and without a wasted pair. Where chains are so short
that the fixed cost of a piece outweighs its pairs, neighbours are joined into one block, which sees the
path they all share without a mask and the rest, its own tokens included, with one.

N is the number of tokens. A *path* is a list of ranges of tokens, from the root down; its token number i has
position i.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Range = tuple[int, int]
Path = tuple[Range, ...]
Int64 = NDArray[np.int64]

MAX_MASKED_ROWS = 512  # queries of a block with a mask, which bounds the mask's memory
WINDOW_ROWS = 256  # queries of a block where a sliding window cuts off part of its path


@dataclass(frozen=True, eq=False)
class Piece:
    """Keys that a block of queries attends to.

    Attributes:
        keys: ranges of tokens, ascending.
        causal: query i of the block sees key j iff j ≤ i; then the keys are the block's own tokens.
        mask: (queries, keys) bool, true where visible; None: all of them (or `causal`).
    """

    keys: Path
    causal: bool = False
    mask: NDArray[np.bool_] | None = None

    @property
    def num_keys(self) -> int:
        return sum(stop - start for start, stop in self.keys)


@dataclass(frozen=True, eq=False)
class Block:
    """The queries [start, stop) and all they see. Each query sees a key in the last piece: itself."""

    start: int
    stop: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Limits:
    """How to cut.

    Attributes:
        overhead: the fixed cost of a piece, in query-key pairs.
        max_rows: longest block of queries; 0: no limit. For attention that stores its scores.
    """

    overhead: int = 1024
    max_rows: int = 0


@dataclass(frozen=True, eq=False)
class _Forest:
    end: Int64
    position: Int64
    window: int  # larger than any position if there is none
    descending: Int64  # -end, ascending along every path


@dataclass(frozen=True)
class _Span:
    """Neighbouring tokens with the path above the first of them."""

    start: int
    stop: int
    path: Path
    is_chain: bool


def plan_attention(
    subtree_end: NDArray[np.integer],
    position: NDArray[np.integer],
    window: int | None = None,
    limits: Limits | None = None,
) -> list[Block]:
    """Cut a packed tree's attention into blocks that partition its tokens.

    Args:
        subtree_end: (N,) integers, depth-first: one past the last token of each token's subtree.
        position: (N,) integers, each token's distance from its root; a root has 0.
        window: how many tokens of its path a token sees, itself included. None: all.
        limits: how to cut.

    >>> for block in plan_attention(np.array([4, 3, 3, 4]), np.arange(4) % 3, limits=Limits(overhead=0)):
    ...     print(block.start, block.stop, [(p.keys, p.causal) for p in block.pieces])
    0 3 [(((0, 3),), True)]
    3 4 [(((0, 1),), False), (((3, 4),), True)]
    """
    limits = limits or Limits()
    forest = _forest(subtree_end, position, window)
    spans = _join_short(forest, list(_chains(forest)), limits.overhead)
    return [
        Block(part.start, part.stop, _pieces(forest, part))
        for span in spans
        for part in _split(forest, span, limits.max_rows)
    ]


def planned_size(
    subtree_end: NDArray[np.integer], position: NDArray[np.integer], overhead: int
) -> tuple[int, int]:
    """Pairs and pieces of the plan without window and limit of rows, without making its masks.

    >>> planned_size(np.array([4, 3, 3, 4]), np.arange(4) % 3, overhead=0)  # 3·4/2, then 1 and 1
    (8, 3)
    """
    forest = _forest(subtree_end, position, None)
    spans = _join_short(forest, list(_chains(forest)), overhead)
    return sum(_cost(forest, span, 0) for span in spans), sum(_num_pieces(forest, span) for span in spans)


def _forest(subtree_end: NDArray[np.integer], position: NDArray[np.integer], window: int | None) -> _Forest:
    end = np.ascontiguousarray(subtree_end, np.int64)
    return _Forest(end, np.ascontiguousarray(position, np.int64), window or len(end) + 1, -end)


def _chains(forest: _Forest) -> Iterator[_Span]:
    count = len(forest.end)
    cuts = np.flatnonzero(forest.end[:-1] == np.arange(1, count)) + 1  # the token before has no child
    bounds = [0, *cuts.tolist(), count] if count else []
    path: list[Range] = []  # of the token at hand: of each chain the part that lies above it
    for start, stop in pairwise(bounds):
        while path and forest.end[path[-1][0]] <= start:
            path.pop()
        if path:
            first, last = path[-1]
            above = int(np.searchsorted(forest.descending[first:last], -start))
            path[-1] = first, first + above
        yield _Span(start, stop, tuple(path), is_chain=True)
        path.append((start, stop))


def _join_short(forest: _Forest, chains: list[_Span], overhead: int) -> list[_Span]:
    """Join neighbours, first to last, wherever that costs less than leaving them apart."""
    spans: list[_Span] = []
    for chain in chains:
        if spans:
            last = spans[-1]
            joined = _Span(last.start, chain.stop, last.path, is_chain=False)
            if joined.stop - joined.start <= MAX_MASKED_ROWS and _cost(forest, joined, overhead) <= (
                _cost(forest, last, overhead) + _cost(forest, chain, overhead)
            ):
                spans[-1] = joined
                continue
        spans.append(chain)
    return spans


def _cost(forest: _Forest, span: _Span, overhead: int) -> int:
    """In query-key pairs, masked ones included, sliding windows left aside."""
    rows, above = span.stop - span.start, _length(span.path)
    shared = above if span.is_chain else _num_shared(forest, span)
    own = rows * (rows + 1) // 2 if span.is_chain else rows * (rows + above - shared)
    return own + rows * shared + overhead * (2 if shared else 1)


def _num_pieces(forest: _Forest, span: _Span) -> int:
    shared = _length(span.path) if span.is_chain else _num_shared(forest, span)
    return 2 if shared else 1


def _num_shared(forest: _Forest, span: _Span) -> int:
    """How many tokens of the path, from the root, lie above all of the span."""
    count = 0
    for start, stop in span.path:
        here = int(np.searchsorted(forest.descending[start:stop], -span.stop, side="right"))
        count += here
        if here < stop - start:
            break
    return count


def _split(forest: _Forest, span: _Span, max_rows: int) -> Iterator[_Span]:
    rows = max_rows or span.stop - span.start
    if span.is_chain and int(forest.position[span.stop - 1]) >= forest.window:
        rows = min(rows, WINDOW_ROWS)
    if not span.is_chain or rows >= span.stop - span.start:
        yield span
        return
    for start in range(span.start, span.stop, rows):
        path = (*span.path, (span.start, start)) if start > span.start else span.path
        yield _Span(start, min(start + rows, span.stop), path, is_chain=True)


def _pieces(forest: _Forest, span: _Span) -> tuple[Piece, ...]:
    rows = slice(span.start, span.stop)
    own = (span.start, span.stop)
    above = _length(span.path)
    nearest, farthest = int(forest.position[rows].min()), int(forest.position[rows].max())
    if span.is_chain and farthest < forest.window:
        return (*_unmasked(span.path), Piece((own,), causal=True))
    seen_by_some = max(0, nearest - forest.window + 1)
    seen_by_all = min(max(0, farthest - forest.window + 1), above)
    shared = max(_num_shared(forest, span), seen_by_all)
    partly = (*_cut(span.path, seen_by_some, seen_by_all), *_cut(span.path, shared, above), own)
    keys = np.concatenate([np.arange(*span) for span in partly])
    queries = np.arange(span.start, span.stop)[:, None]
    visible = (keys <= queries) & (queries < forest.end[keys])
    visible &= forest.position[queries] - forest.position[keys] < forest.window
    return (*_unmasked(_cut(span.path, seen_by_all, shared)), Piece(partly, mask=visible))


def _unmasked(path: Path) -> tuple[Piece, ...]:
    return (Piece(path),) if path else ()


def _length(path: Path) -> int:
    return sum(stop - start for start, stop in path)


def _cut(path: Path, first: int, last: int) -> Path:
    """The path's tokens number first to last, exclusive."""
    ranges, before = [], 0
    for start, stop in path:
        low, high = max(first - before, 0), min(last - before, stop - start)
        if low < high:
            ranges.append((start + low, start + high))
        before += stop - start
    return tuple(ranges)
