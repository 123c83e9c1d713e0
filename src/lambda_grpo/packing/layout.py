"""`ProcessTree` → one packed row of unique tokens, and the model's log-probs back to (G, T).

Tokens with the same prompt and prefix before them have the same log-prob, so the model needs to run over
each only once. A packed row holds, per group, the prompt and then the tree's tokens, depth first; a
token's position is its distance from the prompt's first token, and token q may see token k iff
k ≤ q < subtree_end[k]. Groups in one row do not see each other. The last tokens of completions are left out,
because nothing is predicted after them.

Invariant: `tree_logps` equals the log-probs of each completion in a row of its own, in value and gradient.
Any loss of all completions' log-probs stays exact, sequence-level ratios included, because autograd sums the
gradients of shared tokens. Dropout would break it, and so would losses over all positions of a batch, such as
a mixture of experts' auxiliary loss.

R is the number of completions (of all groups), N that of packed tokens, M that of predicted ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lambda_grpo.errors import InputError
from lambda_grpo.packing.attention import TreeLayout
from lambda_grpo.tree import ProcessTree


@dataclass(frozen=True, eq=False, repr=False)
class PackedTree:
    """Groups of completions as one row of unique tokens. All tensors are int64.

    Attributes:
        ids: (N,) token ids.
        position: (N,) position ids: tokens above it, the prompt's included.
        subtree_end: (N,) one past the last token below it (itself, if there is none).
        target: (M,) ids of the predicted tokens.
        predictor: (M,) the packed token that predicts each: the one before it, or the prompt's last.
        index: (R, T) predicted token of each completion's token; -1 where there is none: past the
            completion's end, or masked.
        prompt_lengths, lengths: (R,) tokens of each completion's prompt, and its own.
    """

    ids: Tensor
    position: Tensor
    subtree_end: Tensor
    target: Tensor
    predictor: Tensor
    index: Tensor
    prompt_lengths: Tensor
    lengths: Tensor

    @property
    def num_tokens(self) -> int:
        """N, tokens the model runs over."""
        return len(self.ids)

    @property
    def raw_tokens(self) -> int:
        """Tokens of all completions, each with its prompt: what unpacked rows hold without padding."""
        return int(self.prompt_lengths.sum() + self.lengths.sum())

    @cached_property
    def layout(self) -> TreeLayout:
        """What attention needs to know; its plan is made once for all passes."""
        return TreeLayout(self.subtree_end, self.position)

    def to(self, device: torch.device | str) -> "PackedTree":
        """The same on another device; itself, if it is there already."""
        if self.ids.device == torch.device(device):
            return self
        return PackedTree(*(getattr(self, f.name).to(device) for f in fields(self)))

    def __repr__(self) -> str:
        return (
            f"PackedTree(completions={len(self.lengths)}, tokens={self.num_tokens}, "
            f"raw_tokens={self.raw_tokens}, predicted={len(self.target)})"
        )


def pack(prompt_ids: ArrayLike, tree: ProcessTree, mask: ArrayLike | None = None) -> PackedTree:
    """Lay out one group: its prompt once, then each process step once.

    Args:
        prompt_ids: P ≥ 1 token ids, without padding. Where prompts differ inside a group (`contexts`), build
            a tree for each and `join` them.
        tree: the completions.
        mask: (G, T) true at tokens whose log-prob is wanted, as for credits. None: all.

    Returns:
        M counts each wanted token once. Tokens that predict none, the last ones of completions, are left out.

    Raises:
        InputError: an empty prompt, negative ids (padding), a mask of another shape.

    >>> packed = pack([1, 2], ProcessTree.build([[5, 6, 7], [5, 8]]))
    >>> packed.ids.tolist(), packed.position.tolist(), packed.subtree_end.tolist()
    ([1, 2, 5, 6], [0, 1, 2, 3], [4, 4, 4, 4])
    >>> packed.predictor.tolist(), packed.index.tolist()
    ([1, 2, 3, 2], [[0, 1, 2], [0, 3, -1]])
    """
    prompt = _prompt(prompt_ids)
    return _lay_out(prompt, tree, tree.policy_tokens(mask), np.full(tree.num_completions, len(prompt)))


def pack_whole(tree: ProcessTree, prompt_lengths: NDArray[np.integer]) -> PackedTree:
    """Lay out a tree of whole rows: prompt and completion as one sequence each.

    Prompts share what they have in common too, such as a system prompt. So this finds more to share than
    `join`.

    Args:
        tree: of rows of any number of groups.
        prompt_lengths: (R,) ≥ 1, the tokens of each row that are its prompt's.

    Returns:
        `index` is (R, T), T the longest completion.
    """
    place = np.arange(int(tree.lengths.max()))
    wanted = (place >= prompt_lengths[:, None]) & (place < tree.lengths[:, None])
    packed = _lay_out(np.zeros(0, np.int64), tree, wanted, prompt_lengths)
    width = int(packed.lengths.max())
    columns = np.minimum(prompt_lengths[:, None] + np.arange(width), len(place) - 1)
    index = packed.index.gather(1, torch.from_numpy(columns))
    index[torch.arange(width) >= packed.lengths[:, None]] = -1
    return replace(packed, index=index)


def _lay_out(
    prompt: NDArray[np.int64],
    tree: ProcessTree,
    wanted: NDArray[np.bool_],
    prompt_lengths: NDArray[np.integer],
) -> PackedTree:
    """The prompt, then the tree; (R, T) `wanted` marks the tokens that are predicted."""
    count, steps = len(prompt), tree.end - tree.start
    stop = count + np.cumsum(steps, dtype=np.int64)  # of each node's tokens in the row
    start = stop - steps
    place = np.arange(count, int(stop[-1]))  # of each of the tree's tokens in the row
    depth = place + np.repeat(tree.start - start, steps)  # its place in its completion
    predictor = place - 1
    first = np.flatnonzero(steps)
    before = np.where(tree.parent[first] >= 0, stop[tree.parent[first]], count)
    predictor[start[first] - count] = before - 1
    index = tree.step_index.astype(np.int64)
    token = np.append(start - count - tree.start, 0)[index] + np.arange(index.shape[1])
    used = np.zeros(len(place), bool)
    used[token[wanted]] = True

    ids = np.concatenate([prompt, tree.tokens])
    position = np.concatenate([np.arange(count), count + depth])
    end = np.concatenate([np.full(count, stop[-1]), np.repeat(subtree_stops(tree, stop), steps)])
    kept = _needed(end, predictor[used])
    before = np.append(0, np.cumsum(kept))  # kept tokens before each token
    row = (
        ids[kept],
        position[kept],
        before[end[kept]],
        tree.tokens[used],
        before[predictor[used]],
        np.where(wanted, (np.cumsum(used) - 1)[token] if len(used) else -1, -1),
        prompt_lengths,
        count + tree.lengths - prompt_lengths,
    )
    return PackedTree(*(torch.from_numpy(field.astype(np.int64)) for field in row))


def _needed(end: NDArray[np.int64], predictor: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) whether a token, or one below it, predicts another; at least one token is kept.

    The last token of a completion predicts nothing, and where it is nobody's prefix it need not run.
    """
    predicts = np.zeros(len(end) + 1, np.int64)
    predicts[predictor + 1] = 1
    count = np.cumsum(predicts)
    needed = count[end] > count[:-1]
    needed[:1] = True
    return np.asarray(needed)


def join(groups: Sequence[PackedTree]) -> PackedTree:
    """Groups one after the other in one row, where they do not see each other; completions keep this order.

    Raises:
        InputError: no groups.
    """
    if len(groups) == 0:
        raise InputError("groups: expected at least one, got none")
    width = max(group.index.shape[1] for group in groups)
    parts: dict[str, list[Tensor]] = {field.name: [] for field in fields(PackedTree)}
    tokens = predicted = 0
    for group in groups:
        shifts = {"subtree_end": tokens, "predictor": tokens}
        index = torch.where(group.index < 0, -1, group.index + predicted)
        padded = torch.nn.functional.pad(index, (0, width - index.shape[1]), value=-1)
        for name, tensors in parts.items():
            tensors.append(padded if name == "index" else getattr(group, name) + shifts.get(name, 0))
        tokens, predicted = tokens + group.num_tokens, predicted + len(group.target)
    return PackedTree(**{name: torch.cat(tensors) for name, tensors in parts.items()})


def subtree_stops(tree: ProcessTree, stop: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) of each node, where the tokens of its last descendant stop."""
    stops, parents = stop.tolist(), tree.parent.tolist()
    for node in range(len(stops) - 1, 0, -1):
        stops[parents[node]] = max(stops[parents[node]], stops[node])
    return np.array(stops)


def _prompt(prompt_ids: ArrayLike) -> NDArray[np.int64]:
    prompt = np.asarray(prompt_ids)
    if prompt.ndim != 1 or len(prompt) == 0 or prompt.dtype.kind not in "iu":
        raise InputError(
            "prompt_ids: expected at least one token id, in one dimension, because something must predict "
            f"the completions' first token; got shape {prompt.shape}, dtype {prompt.dtype}"
        )
    if prompt.min() < 0:
        raise InputError(
            f"prompt_ids: token #{int(prompt.argmin())} is {prompt.min()}; cut off padding first"
        )
    return prompt.astype(np.int64)
