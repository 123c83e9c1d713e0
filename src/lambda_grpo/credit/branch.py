"""Credit for completions that were forked on purpose (`BranchPlan`): each block against rows outside it.

Each sampled token belongs to a block of slots that share it. The block's mean reward estimates the value of
the token. A baseline from rows *outside* the block does not depend on the token, so subtracting it leaves
the expected gradient as it is. GRPO's group mean contains the block itself: for a token that m of G rows
share it scales the gradient by 1 − m/G, so early tokens learn less. `tests/core/test_branching.py` goes
through every group that small policies can draw and finds the policy gradient for all three baselines, and
these factors for GRPO.

Only what a block sampled counts as shared here. That two blocks happen to begin alike is coincidence, and
does not enter; for the process tree it does.
"""

import numpy as np
from numpy.typing import ArrayLike

from lambda_grpo.branching import BranchPlan
from lambda_grpo.credit.token_credit import Float64, TokenCredit, own_advantages, samples, token_credit
from lambda_grpo.errors import InputError, unknown_name
from lambda_grpo.tree import ProcessTree

BASELINES = ("outside", "siblings", "mixed")
SCALES = ("group", "none")


def branch(
    tree: ProcessTree,
    rewards: ArrayLike,
    *,
    advantages: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    plan: BranchPlan | None = None,
    baseline: str = "mixed",
    scale: str = "group",
) -> TokenCredit:
    """Each token gets (mean reward of its block − a baseline from rows outside the block, 1).

    With `scale="none"` the expectation of 1/G · Σ_i Σ_t advantage · ∇ log π is the policy gradient, exactly,
    at every depth and for every baseline.

    Args:
        tree: of G completions in the plan's order.
        rewards: (G,) one outcome reward per completion.
        advantages: (G,) the trainer's own, which are the rewards minus their mean, scaled; with
            `scale="group"` they take the place of the rewards.
        mask: (G, T) tokens that enter the loss. A completion that is masked whole is in no mean.
        plan: where the group forked; None: nowhere, so that each completion is a block of its own, and every
            baseline is the mean of all the others.
        baseline: `outside`, the mean of all rows outside the block; `siblings`, of the other blocks
            under the same parent block; `mixed`, s/(s + 1) of `siblings` and 1/(s + 1) of `outside`, for s
            siblings; `outside` alone where all siblings are masked. Where the baseline has no row, the
            advantage is 0.
        scale: `group`, divided by the group's standard deviation as in GRPO; `none`, in units of the rewards.

    Raises:
        InputError: as `grpo`; a plan that does not fit the group, a block whose rows differ, an unknown
        baseline or scale.

    >>> tree = ProcessTree.build([[5, 6], [5, 7], [8, 9], [8, 4]])
    >>> plan = BranchPlan((1,), (2,))
    >>> branch(tree, [1, 0, 0, 0], plan=plan, baseline="outside", scale="none").advantage.round(2)
    array([[ 0.5 ,  1.  ],
           [ 0.5 , -0.33],
           [-0.5 , -0.33],
           [-0.5 , -0.33]], dtype=float32)
    """
    if baseline not in BASELINES:
        raise unknown_name("baseline", str(baseline), BASELINES)
    if scale not in SCALES:
        raise unknown_name("scale", str(scale), SCALES)
    scaled = own_advantages(tree, rewards, advantages)
    values = scaled if scale == "group" else np.asarray(rewards, np.float64)
    counted = samples(tree, mask)
    told = np.ones(tree.num_completions) if counted is None else counted.astype(np.float64)
    sizes = plan.sizes(tree.num_completions) if plan else (1,)
    if plan:
        _check_blocks(tree, plan, sizes)
    by_level = np.stack(
        [
            _block_advantage(values, told, size, parent, baseline)
            for size, parent in zip(sizes, (tree.num_completions, *sizes), strict=False)
        ]
    )
    length = tree.step_index.shape[1]
    level = plan.level(length) if plan else np.zeros(length, np.int32)
    return token_credit(tree, by_level[level].T, 1.0, mask)


def _block_advantage(values: Float64, told: Float64, size: int, parent: int, baseline: str) -> Float64:
    """(G,) each row's block mean minus the baseline; 0 if one of them has no row to tell it."""

    def sums(of: Float64, rows: int) -> Float64:
        return np.repeat(of.reshape(-1, rows).sum(axis=1), rows)

    total, own = values * told, (sums(values * told, size), sums(told, size))
    outside = (total.sum() - own[0], told.sum() - own[1])
    siblings = (sums(total, parent) - own[0], sums(told, parent) - own[1])
    count = parent // size - 1
    mixed = np.where(siblings[1] > 0, count / (count + 1), 0.0)  # without siblings that tell: `outside`
    share = {"outside": np.zeros(len(values)), "siblings": np.ones(len(values)), "mixed": mixed}[baseline]
    compared = share * _mean(*siblings) + (1 - share) * _mean(*outside)
    known = (own[1] > 0) & ((share == 0) | (siblings[1] > 0)) & ((share == 1) | (outside[1] > 0))
    return np.where(known, _mean(*own) - compared, 0.0)


def _mean(total: Float64, count: Float64) -> Float64:
    return total / np.maximum(count, 1)


def _check_blocks(tree: ProcessTree, plan: BranchPlan, sizes: tuple[int, ...]) -> None:
    """The rows of a block share every token up to its next fork."""
    for size, depth in zip(sizes, plan.depths, strict=False):
        begun = tree.step_index[:, :depth]
        first = np.repeat(begun[::size], size, axis=0)
        if (begun != first).any():
            row = int((begun != first).any(axis=1).argmax())
            raise InputError(
                f"branch: completions #{row - row % size} and #{row} are in one block up to token {depth}, "
                "but differ before it: rows are not in the plan's order, or were not sampled by it"
            )
