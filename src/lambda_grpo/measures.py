"""How far a group is from the trivial process reward model (Sullivan & Koller, section 3.2).

A completion's *path* runs from the root to its leaf. The leaf of a completion that no other one extends
is the node in which it ends; a completion that is a proper prefix of another has an empty leaf below
that node, which the tree does not store. With a `mask` (G, T) only policy tokens count: a node
counts for a completion if it holds at least one of its policy tokens.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lambda_grpo.tree import ProcessTree


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
        return int((tree.size * (tree.end - tree.start))[tree.size > 1].sum())
    return int((tree.policy_tokens(mask) & (tree.set_sizes() > 1)).sum())


def counted(tree: ProcessTree, mask: ArrayLike | None = None) -> NDArray[np.bool_]:
    """(G,) bool: the completions that have a policy token, over which the paper's means run."""
    return np.asarray(tree.lengths > 0 if mask is None else tree.policy_tokens(mask).any(axis=1))


def _has_own_leaf(tree: ProcessTree) -> NDArray[np.bool_]:
    """(G,) bool: whether no other completion extends this one."""
    inner = np.zeros(tree.num_steps, bool)
    inner[tree.parent[1:]] = True
    return ~inner[tree.leaf]
