"""An optimistic step reward: the best completions of a step count more than the others.

It was made for this project: the soft maximum of risk-seeking control (an exponential utility) replaces the
mean in the step reward of Sullivan & Koller, arXiv 2509.21154, section 3.
"""

import numpy as np
from numpy.typing import ArrayLike

from lambda_grpo.credit.token_credit import Float64, TokenCredit, own_advantages, samples, token_credit
from lambda_grpo.errors import InputError
from lambda_grpo.tree import ProcessTree


def optimistic(
    tree: ProcessTree,
    rewards: ArrayLike,
    *,
    advantages: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    tau: float = 0.3,
) -> TokenCredit:
    """Token (i, t) gets (A(λ), 1 / |λ|) for λ = λ(i,t), with the soft maximum of the rewards as step reward.

    A(λ) = (R̂_τ(λ) - mean r) / (std r + ε), R̂_τ(λ) = τ·log mean exp(r / τ) over λ. So a good completion's
    prefix is not pushed down because bad ones share it (anti-exploitation). As τ → ∞ it is λ-GRPO's push,
    as τ → 0 R̂ is the best reward in λ. The root's A is positive if rewards differ: its shared tokens are
    pushed up.

    The trainer's `advantages` are taken as k·r + b: A(λ) = τk·log mean exp(a / τk), the same number, with k
    = std a / std r (over completions with a ≠ 0: a trainer gives 0 to those it cannot score). That is exact
    if the advantages are linear in the group's rewards, as `group_advantage` is; otherwise k puts τ on the
    scale of the advantages. If the rewards do not differ, k is 1. Masked completions are left out as in
    `process`.

    Args:
        tau: τ > 0, in units of the rewards.

    Other arguments and errors as `grpo`; InputError also for τ.
    """
    if isinstance(tau, bool) or not isinstance(tau, int | float) or not 0 < tau < np.inf:
        raise InputError(f"credit 'optimistic': tau: expected a positive number, got {tau!r}")
    a_G = own_advantages(tree, rewards, advantages)
    tau = tau * _slope(np.asarray(rewards, np.float64), a_G)
    values = _soft_maximum(tree, a_G, tau, samples(tree, mask)).astype(np.float32)
    return token_credit(tree, tree.per_token(values), tree.per_token(np.float32(1) / tree.size), mask)


def _slope(rewards: Float64, advantages: Float64) -> float:
    """k of advantages = k·rewards + b."""
    for rows in (advantages != 0, np.ones(len(advantages), bool)):
        a, r = advantages[rows], rewards[rows]
        if len(a) and np.ptp(a) > 0 and np.ptp(r) > 0:
            return float(a.std() / r.std())
    return 1.0


def _soft_maximum(tree: ProcessTree, values: Float64, tau: float, counted: np.ndarray | None) -> Float64:
    """(N,): τ·log mean exp(values / τ) over the counted completions of each node; 0 where there are none.

    Nodes are runs of `tree.order`; all of them are laid end to end, which takes at most one place per token.
    """
    starts = np.cumsum(tree.size) - tree.size
    members = tree.order[np.arange(tree.size.sum()) + np.repeat(tree.first - starts, tree.size)]
    inside = np.ones(len(members), bool) if counted is None else counted[members]
    value = np.where(inside, values[members], -np.inf)
    highest = np.maximum.reduceat(value, starts)
    number = np.add.reduceat(inside.astype(np.float64), starts)
    highest[number == 0] = 0
    exponents = np.exp((value - np.repeat(highest, tree.size)) / tau)
    mean = np.add.reduceat(exponents, starts) / np.maximum(number, 1)
    return highest + tau * np.log(np.where(number == 0, 1, mean))
