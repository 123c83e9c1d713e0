"""How far a group is from the trivial process reward model (Sullivan & Koller, section 3.2).

A completion's *path* runs from the root to its leaf. The leaf of a completion that no other one extends
is the node in which it ends; a completion that is a proper prefix of another has an empty leaf below
that node, which the tree does not store. With a `mask` (G, T) only policy tokens count: a node
counts for a completion if it holds at least one of its policy tokens.

The second half counts the flaw of GRPO (section 4) over all tokens of a group. All of it rests on one
number per step, its *gradient weight*: the factor on the gradient of each of its tokens' log-probs,
summed over the completions that share it. See `gradient_weight`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lambda_grpo.credit import path_sums, step_means
from lambda_grpo.tree import ProcessTree

Float64 = NDArray[np.float64]

# Means of advantages that cancel leave rounding residue of either sign; advantages are of order 1.
_ZERO = 1e-9


def path_depth(tree: ProcessTree, mask: ArrayLike | None = None) -> NDArray[np.int64]:
    """(G,) int64: the number of nodes strictly between the root and the completion's leaf.

    0 for an empty completion; leave those out of means (`counted`).
    """
    own_leaf = _has_own_leaf(tree)
    if mask is None:
        return np.maximum(tree.depth[tree.leaf] - own_leaf, 0).astype(np.int64)
    policy = tree.policy_tokens(mask)
    holds = np.zeros((tree.num_completions, tree.num_steps), bool)  # a policy token of (completion, node)
    holds[np.nonzero(policy)[0], tree.step_index[policy]] = True
    holds[:, 0] = False
    own = np.flatnonzero(own_leaf)
    holds[own, tree.leaf[own]] = False
    return holds.sum(axis=1)


def intermediate_proportion(tree: ProcessTree, mask: ArrayLike | None = None) -> NDArray[np.float64]:
    """(G,) float64: 1 - (tokens in the completion's leaf) / (its tokens).

    1 for a proper prefix of another completion; 0 for an empty one: leave those out of means.
    """
    if mask is None:
        total, in_leaf = tree.lengths, (tree.end - tree.start)[tree.leaf]
    else:
        policy = tree.policy_tokens(mask)
        total = policy.sum(axis=1)
        in_leaf = (policy & (tree.step_index == tree.leaf[:, None])).sum(axis=1)
    return (total - in_leaf * _has_own_leaf(tree)) / np.maximum(total, 1)


def is_flat(tree: ProcessTree, mask: ArrayLike | None = None) -> bool:
    """Whether every leaf hangs off the root, that is, the process reward model is trivial."""
    return not path_depth(tree, mask).any()


def shared_tokens(tree: ProcessTree, mask: ArrayLike | None = None) -> int:
    """How many tokens have |λ| > 1: those whose weight λ-GRPO changes."""
    if mask is None:
        return int((tree.size * (tree.end - tree.start))[tree.size > 1].sum(dtype=np.int64))
    return int((tree.policy_tokens(mask) & (tree.set_sizes() > 1)).sum())


def counted(tree: ProcessTree, mask: ArrayLike | None = None) -> NDArray[np.bool_]:
    """(G,) bool: the completions that have a policy token, over which the paper's means run."""
    return np.asarray(tree.lengths > 0 if mask is None else tree.policy_tokens(mask).any(axis=1))


@dataclass(frozen=True)
class Totals:
    """Sums over groups, from which means over any set of groups or processes follow.

    Attributes:
        groups, flat_groups: their number.
        counted: completions with a policy token; the sums `path_depth` and
            `intermediate_proportion` run over them.
        masked: completions that have tokens, none of them the policy's.
        tokens, shared_tokens: policy tokens, and those of them with |λ| > 1.
    """

    groups: int
    flat_groups: int
    counted: int
    masked: int
    path_depth: float
    intermediate_proportion: float
    tokens: int
    shared_tokens: int

    def fractions(self) -> dict[str, tuple[float, int]]:
        """What engines log, by name: a sum and the count that it is divided by."""
        return {
            "tree/path_depth": (self.path_depth, self.counted),
            "tree/intermediate_proportion": (self.intermediate_proportion, self.counted),
            "tree/shared_tokens": (self.shared_tokens, self.tokens),
            "tree/flat_groups": (self.flat_groups, self.groups),
        }


def totals(trees: Sequence[ProcessTree], masks: Sequence[ArrayLike | None]) -> Totals:
    """The sums of the measures over several groups, each with its mask (G, T) or None.

    Groups without a mask are measured together, in one pass over their arrays.
    """
    parts: list[tuple[ProcessTree, ArrayLike | None, NDArray[np.int64]]] = []  # each tree's first completion
    plain = []
    for tree, mask in zip(trees, masks, strict=True):
        if mask is None:
            plain.append(tree)
        else:
            parts.append((tree, mask, np.zeros(1, np.int64)))
    if plain:
        parts.append((_side_by_side(plain), None, _starts([len(tree.lengths) for tree in plain])))
    return summed([_totals(*part) for part in parts])


def totals_of_rows(tree: ProcessTree, mask: ArrayLike | None, rows: Sequence[int]) -> Totals:
    """The sums over some completions of a group. All its completions decide whether it is flat."""
    own = np.zeros((tree.num_completions, 1), bool)
    own[rows] = True
    found = _totals(tree, tree.policy_tokens(mask) & own, np.zeros(1, np.int64))
    masked = int(np.count_nonzero(tree.lengths[own[:, 0]])) - found.counted
    return replace(found, masked=masked, flat_groups=int(is_flat(tree, mask)))


def summed(parts: Sequence[Totals]) -> Totals:
    """The totals over several parts."""
    return Totals(**{f.name: sum(getattr(part, f.name) for part in parts) for f in fields(Totals)})


def _totals(tree: ProcessTree, mask: ArrayLike | None, starts: NDArray[np.int64]) -> Totals:
    """The sums over one tree or several side by side, whose completions begin at `starts`."""
    row = counted(tree, mask)
    depth = path_depth(tree, mask)
    num_counted = int(np.count_nonzero(row))
    return Totals(
        groups=len(starts),
        flat_groups=int(np.count_nonzero(np.maximum.reduceat(depth, starts) == 0)),
        counted=num_counted,
        masked=int(np.count_nonzero(tree.lengths)) - num_counted,
        path_depth=float(depth[row].sum()),
        intermediate_proportion=float(intermediate_proportion(tree, mask)[row].sum()),
        tokens=int(
            tree.lengths.sum(dtype=np.int64) if mask is None else np.count_nonzero(tree.policy_tokens(mask))
        ),
        shared_tokens=shared_tokens(tree, mask),
    )


def _side_by_side(trees: Sequence[ProcessTree]) -> ProcessTree:
    """Several trees as one with several roots. It has no token ids and no order: the measures without mask
    need neither."""

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(tree, name) for tree in trees])

    completions = np.array([tree.num_completions for tree in trees])
    steps = np.array([tree.num_steps for tree in trees])
    first_step = _starts(steps)
    parent = joined("parent")
    return ProcessTree(
        lengths=joined("lengths"),
        leaf=joined("leaf") + np.repeat(first_step, completions),
        parent=np.where(parent < 0, -1, parent + np.repeat(first_step, steps)),
        start=joined("start"),
        end=joined("end"),
        size=joined("size"),
        depth=joined("depth"),
        first=joined("first"),
        order=np.zeros(0, np.int32),
        _flat=np.zeros(0, np.int32),
        _offsets=np.zeros(0, np.int64),
    )


def _starts(counts: ArrayLike) -> NDArray[np.int64]:
    """Where each of several neighbours begins."""
    sizes = np.asarray(counts, np.int64)
    return np.cumsum(sizes) - sizes


def _has_own_leaf(tree: ProcessTree) -> NDArray[np.bool_]:
    """(G,) bool: whether no other completion extends this one."""
    inner = np.zeros(tree.num_steps, bool)
    inner[tree.parent[tree.parent >= 0]] = True
    return ~inner[tree.leaf]


def gradient_weight(tree: ProcessTree, advantages: Float64, step_weights: ArrayLike = 1.0) -> Float64:
    """(N,): w(λ)·Σ_{i∈λ} a_i = w(λ)·|λ|·A(λ), what each token of a step is pushed by in all.

    Shared tokens have one log-prob, so the pushes of the completions that share a step add up. With
    w = 1 this is GRPO's |λ|·A(λ); with w = 1/|λ| it is λ-GRPO's A(λ). It is exactly 0 where
    the advantages cancel (the root, by definition of a_i).

    Args:
        tree: the group's process tree.
        advantages: (G,) finite a_i.
        step_weights: (N,) or one number, w(λ) ≥ 0.
    """
    step_advantage = step_means(tree, advantages)
    step_advantage[np.abs(step_advantage) < _ZERO] = 0
    return np.asarray(step_weights) * tree.size * step_advantage


def tokens_pushed_down(tree: ProcessTree, advantages: Float64) -> NDArray[np.int64]:
    """(G,) int64: the tokens of each completion whose step advantage A(λ) is negative.

    For the best completion of a group these are GRPO's anti-exploitation: its prefix is pushed down
    because worse completions share it. λ-GRPO pushes the same tokens down, but less (`downward_share`).
    """
    down = gradient_weight(tree, advantages) < 0
    return path_sums(tree, down * (tree.end - tree.start))


def downward_share(tree: ProcessTree, advantages: Float64, step_weights: ArrayLike = 1.0) -> Float64:
    """(G,): of the |gradient weight| on a completion's tokens, the share that pushes down; nan if
    none of them is pushed."""
    pushed = gradient_weight(tree, advantages, step_weights) * (tree.end - tree.start)
    down = path_sums(tree, np.maximum(-pushed, 0))
    total = path_sums(tree, np.abs(pushed))
    share = np.clip(down / np.where(total > _ZERO, total, 1), 0, 1)
    return np.where(total > _ZERO, share, np.nan)


def most_frequent_step(tree: ProcessTree, advantages: Float64) -> int:
    """The node below the root with the largest |λ|; -1 if there is none.

    The root does not compete, because its tokens are no choice that the group could explore. Of several steps
    with the same |λ| it is the one with the most |gradient weight| under GRPO, and of those the first.
    """
    if tree.num_steps < 2:
        return -1
    weight = np.abs(gradient_weight(tree, advantages)) * (tree.end - tree.start)
    return 1 + int(np.lexsort((-weight[1:].round(9), -tree.size[1:]))[0])


def most_frequent_share(tree: ProcessTree, advantages: Float64, step_weights: ArrayLike = 1.0) -> float:
    """How much of the group's total |gradient weight|, tokens × |w·|λ|·A|, falls on its most frequent
    step; nan if the group has no gradient (all rewards equal) or no step below the root.

    Large values are GRPO's anti-exploration: the frequent step is pushed |λ| times as hard as it would be
    alone, so it crowds out rare better ones.
    """
    weight = np.abs(gradient_weight(tree, advantages, step_weights)) * (tree.end - tree.start)
    node, total = most_frequent_step(tree, advantages), float(weight.sum())
    return float(weight[node]) / total if node >= 0 and total > _ZERO else float("nan")


def effective_terms(tree: ProcessTree, advantages: Float64, step_weights: ArrayLike = 1.0) -> float:
    """The effective number of tree terms, (Σ|g|)² / Σg² over the unique tokens' gradient weights g
    (Kish); nan if the group has no gradient.

    It equals the number of unique tokens when all are pushed equally hard, and 1 when one takes all.
    """
    g, tokens = gradient_weight(tree, advantages, step_weights), tree.end - tree.start
    squares = float((tokens * g**2).sum())
    return float((tokens * np.abs(g)).sum()) ** 2 / squares if squares > 0 else float("nan")
