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
    if mask is None:
        return _path_depth(tree)
    policy, own_leaf = tree.policy_tokens(mask), _has_own_leaf(tree)
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
        return _intermediate_proportion(tree)
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
        return _shared_tokens(tree)
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
    found = [_masked_totals(tree, mask) for tree, mask in zip(trees, masks, strict=True) if mask is not None]
    plain = [tree for tree, mask in zip(trees, masks, strict=True) if mask is None]
    if plain:
        found.append(_plain_totals(plain))
    return summed(found)


def totals_of_rows(tree: ProcessTree, mask: ArrayLike | None, rows: Sequence[int]) -> Totals:
    """The sums over some completions of a group. All its completions decide whether it is flat."""
    own = np.zeros((tree.num_completions, 1), bool)
    own[rows] = True
    found = _masked_totals(tree, tree.policy_tokens(mask) & own)
    masked = int(np.count_nonzero(tree.lengths[own[:, 0]])) - found.counted
    return replace(found, masked=masked, flat_groups=int(is_flat(tree, mask)))


def summed(parts: Sequence[Totals]) -> Totals:
    """The totals over several parts."""
    return Totals(**{f.name: sum(getattr(part, f.name) for part in parts) for f in fields(Totals)})


def _masked_totals(tree: ProcessTree, mask: ArrayLike) -> Totals:
    row, depth = counted(tree, mask), path_depth(tree, mask)
    return Totals(
        groups=1,
        flat_groups=int(not depth.any()),
        counted=int(np.count_nonzero(row)),
        masked=int(np.count_nonzero(tree.lengths)) - int(np.count_nonzero(row)),
        path_depth=float(depth[row].sum()),
        intermediate_proportion=float(intermediate_proportion(tree, mask)[row].sum()),
        tokens=int(np.count_nonzero(tree.policy_tokens(mask))),
        shared_tokens=shared_tokens(tree, mask),
    )


def _plain_totals(trees: Sequence[ProcessTree]) -> Totals:
    steps, firsts = _Steps.of(trees), _starts([tree.num_completions for tree in trees])
    row, depth = steps.lengths > 0, _path_depth(steps)
    return Totals(
        groups=len(trees),
        flat_groups=int(np.count_nonzero(np.maximum.reduceat(depth, firsts) == 0)),
        counted=int(np.count_nonzero(row)),
        masked=0,
        path_depth=float(depth[row].sum()),
        intermediate_proportion=float(_intermediate_proportion(steps)[row].sum()),
        tokens=int(steps.lengths.sum(dtype=np.int64)),
        shared_tokens=_shared_tokens(steps),
    )


@dataclass(frozen=True)
class _Steps:
    """The steps of several trees end to end, as far as the measures without mask read them.

    Attributes:
        lengths, leaf: (completions,) as in `ProcessTree`; leaf and parent number the steps of all trees.
        parent, start, end, size, depth: (steps,); the parent of each root is -1.
    """

    lengths: NDArray[np.integer[Any]]
    leaf: NDArray[np.integer[Any]]
    parent: NDArray[np.integer[Any]]
    start: NDArray[np.integer[Any]]
    end: NDArray[np.integer[Any]]
    size: NDArray[np.integer[Any]]
    depth: NDArray[np.integer[Any]]

    @classmethod
    def of(cls, trees: Sequence[ProcessTree]) -> "_Steps":
        joined = {f.name: np.concatenate([getattr(tree, f.name) for tree in trees]) for f in fields(cls)}
        steps = [tree.num_steps for tree in trees]
        before = _starts(steps)
        in_tree = np.repeat(before, steps)
        joined["parent"] = np.where(joined["parent"] < 0, -1, joined["parent"] + in_tree)
        joined["leaf"] = joined["leaf"] + np.repeat(before, [tree.num_completions for tree in trees])
        return cls(**joined)


def _path_depth(steps: ProcessTree | _Steps) -> NDArray[np.int64]:
    return np.maximum(steps.depth[steps.leaf] - _has_own_leaf(steps), 0).astype(np.int64)


def _intermediate_proportion(steps: ProcessTree | _Steps) -> NDArray[np.float64]:
    in_leaf = (steps.end - steps.start)[steps.leaf] * _has_own_leaf(steps)
    return (steps.lengths - in_leaf) / np.maximum(steps.lengths, 1)


def _shared_tokens(steps: ProcessTree | _Steps) -> int:
    return int((steps.size * (steps.end - steps.start))[steps.size > 1].sum(dtype=np.int64))


def _starts(counts: ArrayLike) -> NDArray[np.int64]:
    """Where each of several neighbours begins."""
    sizes = np.asarray(counts, np.int64)
    return np.cumsum(sizes) - sizes


def _has_own_leaf(steps: ProcessTree | _Steps) -> NDArray[np.bool_]:
    """(completions,) bool: whether no other completion extends this one."""
    inner = np.zeros(len(steps.parent), bool)
    inner[steps.parent[steps.parent >= 0]] = True
    return ~inner[steps.leaf]


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
