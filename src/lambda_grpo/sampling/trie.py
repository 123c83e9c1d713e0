"""Prompts → the trie of their prefixes, laid out as one row in which each shared token stands once.

Example: three prompts of tokens, and the packed row of their five unique tokens.

    prompts          1 2 3 | 1 2 4 5 | 1 2 3        packed row   1 2 3 4 5
    paths            0 1 2 | 0 1 3 4 | 0 1 2        position     0 1 2 2 3

R is the number of rows (prompts, repetitions included), N that of unique tokens, P the longest prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lambda_grpo.packing.layout import subtree_stops
from lambda_grpo.tree import ProcessTree

Ints = NDArray[np.int64]


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


def depth_first(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The numbers of the prompts, in an order in which those that share a prefix are neighbours.

    >>> depth_first([[1, 2], [3], [1, 4], [1, 2]])
    [0, 3, 2, 1]
    """
    last = PromptTrie.build(prompts).last
    return [int(row) for row in np.argsort(last, kind="stable")]


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
