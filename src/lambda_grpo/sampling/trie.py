"""Prompts → the trie of their prefixes, laid out as one row in which each shared token stands once.

Example: three prompts of tokens, and the packed row of their five unique tokens.

    prompts          1 2 3 | 1 2 4 5 | 1 2 3        packed row   1 2 3 4 5
    paths            0 1 2 | 0 1 3 4 | 0 1 2        position     0 1 2 2 3

R is the number of rows (prompts, repetitions included), N that of unique tokens, P the longest prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lambda_grpo.packing.layout import subtree_stops
from lambda_grpo.tree import ProcessTree

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SharedPrefix:
    """A stretch of tokens that several rows have in common.

    Attributes:
        tokens: (S,) their places in the packed row, along the path.
        rows: first row, and one past the last.
    """

    tokens: Ints
    rows: tuple[int, int]


@dataclass(frozen=True, eq=False)
class PromptTrie:
    """The unique tokens of some rows' prompts, depth first.

    Attributes:
        ids, position: (N,) token ids, and distances from the first token.
        subtree_end: (N,) one past the last token below each token.
        paths: (R, P) the token in the packed row that stands in each column, aligned on the right; 0 in the
            padding on the left.
        lengths: (R,) tokens of each prompt.
    """

    ids: Ints
    position: Ints
    subtree_end: Ints
    paths: Ints
    lengths: Ints

    @classmethod
    def build(cls, prompts: Sequence[Sequence[int]]) -> "PromptTrie":
        """The trie of prompts that each hold a token at least.

        >>> trie = PromptTrie.build([[1, 2, 3], [1, 2, 4, 5]])
        >>> trie.ids.tolist(), trie.position.tolist(), trie.subtree_end.tolist()
        ([1, 2, 3, 4, 5], [0, 1, 2, 2, 3], [5, 5, 3, 5, 5])
        >>> trie.paths.tolist()
        [[0, 0, 1, 2], [0, 1, 3, 4]]
        """
        tree = ProcessTree.build([np.asarray(prompt, np.int64) for prompt in prompts])
        steps = (tree.end - tree.start).astype(np.int64)
        stop = np.cumsum(steps)
        start = stop - steps
        position = np.arange(stop[-1]) + np.repeat(tree.start - start, steps)
        lengths = tree.lengths.astype(np.int64)
        width = tree.step_index.shape[1]
        column = np.arange(width) - (width - lengths[:, None])  # of the prompt, negative in the padding
        node = np.take_along_axis(tree.step_index.astype(np.int64), np.maximum(column, 0), axis=1)
        paths = np.where(column >= 0, (start - tree.start)[node] + column, 0)
        end = np.repeat(subtree_stops(tree, stop), steps)
        return cls(tree.tokens.astype(np.int64), position, end, paths, lengths)

    @property
    def last(self) -> Ints:
        """(R,) the packed token that each prompt ends with."""
        return self.paths[:, -1]

    @property
    def order(self) -> list[int]:
        """The rows in depth-first order, in which those that share a prefix are neighbours.

        >>> PromptTrie.build([[1, 2], [3], [1, 4], [1, 2]]).order
        [0, 3, 2, 1]
        """
        return [int(row) for row in np.argsort(self.last, kind="stable")]

    def of_rows(self, rows: Sequence[int]) -> "PromptTrie":
        """The same with these rows only, which together hold all of its tokens."""
        return replace(self, paths=self.paths[rows], lengths=self.lengths[rows])

    def shared_prefixes(self, worth: int) -> list[SharedPrefix]:
        """Stretches that are worth being kept once; one after the other they are the beginning of a row.

        Args:
            worth: a stretch is kept if its further copies, one a row, would hold so many tokens. A shorter
                one is joined to the next on its path.

        The rows must be in depth-first order.

        >>> trie = PromptTrie.build([[1, 2, 3], [1, 2, 4, 5], [1, 2, 4, 5]])
        >>> [(prefix.tokens.tolist(), prefix.rows) for prefix in trie.shared_prefixes(3)]
        [([0, 1], (0, 3))]
        >>> [(prefix.tokens.tolist(), prefix.rows) for prefix in trie.shared_prefixes(2)]
        [([0, 1], (0, 3)), ([3, 4], (1, 3))]
        """
        first = np.searchsorted(self.last, np.arange(len(self.ids)))
        stop = np.searchsorted(self.last, self.subtree_end)
        goes_on = np.diff(self.position) == 1  # the token before is then the parent
        starts = np.flatnonzero(np.append(True, ~goes_on | (np.diff(first) != 0) | (np.diff(stop) != 0)))
        waiting: dict[int, Ints] = {}  # by the last token of a stretch: what its path has not kept yet
        found = []
        for start, end in zip(starts, np.append(starts[1:], len(self.ids)), strict=True):
            rows, tokens = (int(first[start]), int(stop[start])), np.arange(start, end)
            if self.position[start]:
                column = self.paths.shape[1] - self.lengths[rows[0]] + self.position[start]
                tokens = np.append(waiting[self.paths[rows[0], column - 1]], tokens)
            if len(tokens) * (rows[1] - rows[0] - 1) >= worth:
                found.append(SharedPrefix(tokens, rows))
                tokens = tokens[:0]
            waiting[int(end) - 1] = tokens
        return found


def chunks(prompts: Sequence[Sequence[int]], tokens: int) -> Iterator[slice]:
    """Cut prompts in depth-first order so that no trie of a part has more than so many unique tokens.

    A prompt that is longer makes a part of its own. Parts that lie in the middle of a shared prefix both hold
    it.

    >>> list(chunks([[1, 2, 3], [1, 2, 4], [1, 5], [6]], 4))
    [slice(0, 2, None), slice(2, 4, None)]
    """
    last = PromptTrie.build(prompts).last
    first, count, seen = 0, 0, -1
    for row, prompt in enumerate(prompts):
        new = max(0, int(last[row]) - seen)
        if row > first and count + new > tokens:
            yield slice(first, row)
            first, count, new = row, 0, len(prompt)
        count, seen = count + new, max(seen, int(last[row]))
    yield slice(first, len(prompts))
