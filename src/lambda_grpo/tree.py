"""Token ids → `ProcessTree`: the tree B(G) of process sets of one group of completions.

Invariant: node n is a process set λ, *all* completions that share some prefix; its step is the
tokens `start[n]:end[n]` that these completions have in common beyond their parent's. Nodes lie in
depth-first pre-order, so a subtree is a contiguous range of nodes. Children are ordered by context
(order of first appearance), then by their first token id; so the tree does not depend on the order
of the completions. Terms follow Sullivan & Koller (arXiv 2509.21154), section 3.

How the sets are found: `process_sets`. Python loops run over completions and nodes, never over tokens.

Deviation from the paper's drawing: no zero-length step is stored except a root without a common
prefix. A completion that is a proper prefix of another ends in an inner node; `measures` counts the
empty leaf that the definition gives it.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lambda_grpo.errors import InputError
from lambda_grpo.process_sets import Int32, common_prefixes, find_process_sets, link, sort_rows

if TYPE_CHECKING:
    from lambda_grpo.credit.token_credit import TokenCredit
    from lambda_grpo.tree_picture import Picture

_MAX_TOKEN_ID = 2**31 - 1


@dataclass(frozen=True, eq=False, repr=False)
class ProcessTree:
    """The process sets of one group of G completions, as N nodes in depth-first pre-order.

    Attributes:
        lengths: (G,) int32, tokens of each completion.
        leaf: (G,) int32, the node in which each completion ends (the root if it is empty).
        parent: (N,) int32, -1 for the root.
        start, end: (N,) int32, the step's token span [s(λ), e(λ)) within its completions.
        size: (N,) int32, |λ|, the number of completions in the process set.
        depth: (N,) int32, nodes above it: 0 for the root.
        first, order: node n holds the completions `order[first[n] : first[n] + size[n]]`, where
            `order` (G,) int32 lists the completions sorted, and `first` is (N,) int32.

    >>> tree = ProcessTree.build([[5, 6, 7], [5, 6, 8], [9]])
    >>> tree.set_sizes()
    array([[2, 2, 1],
           [2, 2, 1],
           [1, 0, 0]], dtype=int32)
    >>> tree.parent.tolist(), tree.start.tolist(), tree.end.tolist()
    ([-1, 0, 1, 1, 0], [0, 0, 2, 2, 0], [0, 2, 3, 3, 1])
    """

    lengths: Int32
    leaf: Int32
    parent: Int32
    start: Int32
    end: Int32
    size: Int32
    depth: Int32
    first: Int32
    order: Int32
    _flat: Int32  # token ids of a whole batch; this group's rows begin at _offsets
    _offsets: NDArray[np.int64]

    @classmethod
    def build(
        cls, completions: Sequence[ArrayLike], contexts: Sequence[Hashable] | None = None
    ) -> "ProcessTree":
        """Build the tree of one group.

        Args:
            completions: G ≥ 1 one-dimensional sequences of token ids in [0, 2³¹), of any lengths.
                With tool or observation tokens, pass *all* tokens after the prompt, and mask later.
            contexts: one hashable id per completion, if prompts differ inside the group;
                completions of different contexts share nothing.

        Raises:
            InputError: an empty group, a completion that is not a 1-D integer sequence, an id
                outside [0, 2³¹), or contexts that do not match.
        """
        flat, lengths = _flatten(completions)
        return _build(flat, lengths, np.zeros(len(lengths), np.int64), 1, contexts)[0]

    @classmethod
    def from_padded(cls, ids: ArrayLike, lengths: ArrayLike) -> "ProcessTree":
        """Build the tree of one group from right-padded rows.

        Args:
            ids: (G, T) integer token ids; what lies at or past a row's length is ignored.
            lengths: (G,) integers in [0, T].

        Raises:
            InputError: shapes or dtypes that do not fit, a length outside [0, T], and as `build`.
        """
        array, counts = np.asarray(ids), np.asarray(lengths)
        if array.ndim != 2:
            raise InputError(f"ids: expected a (G, T) array, got shape {array.shape}")
        if counts.shape != array.shape[:1] or counts.dtype.kind not in "iu":
            raise InputError(
                f"lengths: expected {len(array)} integers (one per row of ids), "
                f"got shape {counts.shape}, dtype {counts.dtype}"
            )
        bad = np.flatnonzero((counts < 0) | (counts > array.shape[1]))
        if len(bad):
            raise InputError(
                f"lengths: row #{bad[0]} has length {counts[bad[0]]}, expected 0 to {array.shape[1]}"
            )
        return cls.build([row[:n] for row, n in zip(array, counts, strict=True)])

    @classmethod
    def build_many(
        cls,
        completions: Sequence[ArrayLike],
        group_ids: Sequence[Hashable],
        contexts: Sequence[Hashable] | None = None,
    ) -> list["ProcessTree"]:
        """Build the trees of a whole batch of groups in one pass.

        Args:
            completions: B sequences of token ids, as for `build`, of all groups together.
            group_ids: B hashable ids. Rows of one group need not be neighbours.
            contexts: as for `build`, B of them.

        Returns:
            One tree per group, in order of the groups' first appearance; within a tree the
            completions keep the order they have in the batch.

        Raises:
            InputError: as `build`, or group_ids that do not match.
        """
        flat, lengths = _flatten(completions)
        groups, count = _rank(group_ids, len(lengths), "group_ids")
        return _build(flat, lengths, groups, count, contexts)

    @property
    def num_completions(self) -> int:
        """G, the number of completions."""
        return len(self.lengths)

    @property
    def num_steps(self) -> int:
        """N, the number of nodes (process steps), the root included."""
        return len(self.parent)

    @property
    def unique_tokens(self) -> int:
        """U, the number of tokens when each step is counted once."""
        return int((self.end - self.start).sum())

    @cached_property
    def step_index(self) -> Int32:
        """(G, T) int32: the node λ(i,t) that holds each token; -1 past a completion's end."""
        in_order = np.full((self.num_completions, int(self.lengths.max())), -1, np.int32)
        spans = (self.first, self.first + self.size, self.start, self.end)
        for node, (lo, hi, start, end) in enumerate(zip(*(a.tolist() for a in spans), strict=True)):
            in_order[lo:hi, start:end] = node  # a process step is a rectangle among sorted rows
        index = np.empty_like(in_order)
        index[self.order] = in_order
        return index

    @cached_property
    def tokens(self) -> Int32:
        """(U,) int32: the token ids of all steps, each once, in depth-first order."""
        row_start = self._offsets[self.order[self.first]]
        spans = zip((row_start + self.start).tolist(), (row_start + self.end).tolist(), strict=True)
        return np.concatenate([self._flat[a:b] for a, b in spans])

    def per_token(self, values: ArrayLike) -> NDArray[Any]:
        """Spread one value per node, (N,), over its tokens: (G, T), 0 past the end."""
        values_N = np.asarray(values)
        by_index = np.empty(len(values_N) + 1, values_N.dtype)
        by_index[:-1], by_index[-1] = values_N, 0  # step_index is -1 past the end
        return by_index[self.step_index]

    def policy_tokens(self, mask: ArrayLike | None = None) -> NDArray[np.bool_]:
        """(G, T) bool: the tokens inside completions that `mask` (G, T), if given, marks as the
        policy's own.

        Raises:
            InputError: a mask of another shape.
        """
        inside = self.step_index >= 0
        if mask is None:
            return inside
        policy = np.asarray(mask)
        if policy.shape != inside.shape:
            raise InputError(f"mask: expected shape {inside.shape} (completions, tokens), got {policy.shape}")
        return inside & policy.astype(bool)

    def set_sizes(self) -> Int32:
        """(G, T) int32: |λ(i,t)|, how many completions share the prefix up to token t of
        completion i; 0 past the end."""
        return self.per_token(self.size)

    def picture(
        self,
        *,
        credit: "TokenCredit | None" = None,
        decode: Callable[[int], str] | None = None,
        rewards: ArrayLike | None = None,
        max_completions: int = 32,
        max_tokens: int = 60,
    ) -> "Picture":
        """Draw the tree for a notebook: rows are completions, blocks are process steps.

        A block is as wide as its tokens and as high as the completions that share it. The rows lie in the
        tree's order, so that those of a process set are neighbours.

        Args:
            credit: colours each step by its push, the sum of weight × advantage over its completions;
                without it, by the number of completions.
            decode: the text of one token id, such as `tokenizer.decode`; without it no text is shown.
            rewards: (G,) numbers to show beside the completions; None or NaN for an unscored one.
            max_completions, max_tokens: the picture shows the first of both, and says so if there are more.

        Raises:
            InputError: a credit or rewards that do not fit the tree, a limit below 1.
        """
        from lambda_grpo.tree_picture import View, draw_tree

        return draw_tree(self, View(credit, decode, rewards, max_completions, max_tokens))

    def _repr_html_(self) -> str:
        return self.picture()._repr_html_()

    def __repr__(self) -> str:
        return (
            f"ProcessTree(completions={self.num_completions}, steps={self.num_steps}, "
            f"tokens={int(self.lengths.sum())}, unique_tokens={self.unique_tokens})"
        )


def _flatten(completions: Sequence[ArrayLike]) -> tuple[Int32, Int32]:
    """Check the completions; return all their ids end to end, and their lengths (G,).

    The ids are followed by zeros, as many as the longest completion has tokens, so that a block of
    that width can be read from any token on.
    """
    if len(completions) == 0:
        raise InputError("a group needs at least one completion, got none")
    rows = [_row(i, completion) for i, completion in enumerate(completions)]
    lengths = np.array([len(row) for row in rows], np.int32)
    padding = np.zeros(lengths.max(), np.int64)
    flat = np.concatenate([*rows, padding], dtype=np.int64, casting="unsafe")
    if len(flat) and (flat.min() < 0 or flat.max() > _MAX_TOKEN_ID):
        token = int(np.flatnonzero((flat < 0) | (flat > _MAX_TOKEN_ID))[0])
        ends = np.cumsum(lengths)
        i = int(np.searchsorted(ends, token, side="right"))
        raise InputError(
            f"completion #{i}, token #{token - int(ends[i] - lengths[i])}: id {flat[token]} is outside "
            "[0, 2**31); cut off padding before building the tree"
        )
    return flat.astype(np.int32), lengths


def _row(i: int, completion: ArrayLike) -> NDArray[Any]:
    try:
        row = np.asarray(completion)
    except (TypeError, ValueError) as error:  # numpy raises these for a ragged nested list
        raise InputError(f"completion #{i}: expected a 1-D sequence of token ids: {error}") from None
    if row.ndim != 1:
        hint = "; for a padded (G, T) array use from_padded" if row.ndim == 2 else ""
        raise InputError(
            f"completion #{i}: expected a 1-D sequence of token ids, got shape {row.shape}{hint}"
        )
    if row.dtype.kind not in "iu" and row.size:
        raise InputError(f"completion #{i}: expected integer token ids, got dtype {row.dtype}")
    return row


def _rank(ids: Sequence[Hashable], count: int, name: str) -> tuple[NDArray[np.int64], int]:
    """Number hashable ids by first appearance; also return how many there are."""
    if len(ids) != count:
        raise InputError(f"{name}: expected {count} ids (one per completion), got {len(ids)}")
    values = ids.tolist() if isinstance(ids, np.ndarray) else ids
    seen: dict[Hashable, int] = {}
    try:
        ranks = [seen.setdefault(value, len(seen)) for value in values]
    except TypeError as error:
        raise InputError(f"{name}: expected hashable ids: {error}") from None
    return np.array(ranks, np.int64), len(seen)


def _build(
    flat: Int32,
    lengths: Int32,
    groups: NDArray[np.int64],
    num_groups: int,
    contexts: Sequence[Hashable] | None,
) -> list[ProcessTree]:
    """Build all trees of a batch; `groups` (B,) numbers each row's group from 0."""
    offsets = np.zeros(len(lengths), np.int64)
    np.cumsum(lengths[:-1], out=offsets[1:])
    keys = groups
    if contexts is not None:
        ranks, num_contexts = _rank(contexts, len(lengths), "contexts")
        keys = groups * num_contexts + ranks
    order = sort_rows(flat, offsets, lengths, keys)
    row_starts = np.searchsorted(groups[order], np.arange(num_groups + 1))
    lcp = _shared_with_previous(flat, offsets[order], lengths[order], keys[order])
    lcp[row_starts] = -1

    lo, hi, end = find_process_sets(lcp, lengths[order])
    start = np.maximum(np.maximum(lcp[lo], lcp[hi]), 0)  # a step begins where its parent's ends
    parent, depth, leaf = link(lo, hi, len(order))
    node_starts = np.searchsorted(lo, row_starts)

    rows = np.argsort(groups, kind="stable")  # the batch's rows, group by group, in their own order
    place, rank = np.empty_like(rows), np.empty_like(rows)
    place[order] = rank[rows] = np.arange(len(rows))
    row_base = np.repeat(row_starts[:-1], np.diff(row_starts))  # of each sorted row
    node_base = np.repeat(node_starts[:-1], np.diff(node_starts))  # of each node
    per_row: dict[str, NDArray[Any]] = {
        "lengths": lengths[rows],
        "leaf": leaf[place[rows]] - node_starts[groups[rows]].astype(np.int32),
        "order": (rank[order] - row_base).astype(np.int32),
        "_offsets": offsets[rows],
    }
    per_node: dict[str, NDArray[Any]] = {
        "parent": np.maximum(parent - node_base, -1).astype(np.int32),
        "start": start,
        "end": end,
        "size": hi - lo,
        "depth": depth,
        "first": lo - row_starts[groups[order[lo]]].astype(np.int32),
    }
    trees = []
    for rows_of, nodes_of in zip(pairwise(row_starts.tolist()), pairwise(node_starts.tolist()), strict=True):
        in_group, nodes = slice(*rows_of), slice(*nodes_of)
        fields = {name: values[in_group] for name, values in per_row.items()}
        fields |= {name: values[nodes] for name, values in per_node.items()}
        trees.append(ProcessTree(**fields, _flat=flat))
    return trees


def _shared_with_previous(
    flat: Int32, begin: NDArray[np.int64], lengths: Int32, keys: NDArray[np.int64]
) -> Int32:
    """(B + 1,): tokens that sorted rows k - 1 and k share; 0 across keys, -1 at both ends."""
    lcp = np.full(len(begin) + 1, -1, np.int32)
    lcp[1:-1] = common_prefixes(flat, begin, lengths)
    lcp[1:-1][keys[1:] != keys[:-1]] = 0
    return lcp
