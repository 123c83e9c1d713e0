"""λ-GRPO, and two variants that scale it up again by one factor per group.

The factor 1/|λ| makes the gradient smaller, so a comparison with GRPO at one learning rate also compares
step sizes. The two variants remove that difference; within a group they are λ-GRPO times a number.
"""

import numpy as np
from numpy.typing import ArrayLike

from lambda_grpo.credit.token_credit import Float64, TokenCredit, own_advantages, token_credit
from lambda_grpo.errors import InputError
from lambda_grpo.tree import ProcessTree


def lambda_grpo(
    tree: ProcessTree,
    rewards: ArrayLike,
    *,
    advantages: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    power: float = 1.0,
) -> TokenCredit:
    """λ-GRPO: token (i, t) gets (a_i, 1 / |λ(i,t)|), so that a step is pushed once, not |λ| times.

    Sullivan & Koller, arXiv 2509.21154, section 4: L = 1/ΣT_i · Σ_i Σ_t (P_it·a_i - D_it) / |λ(i,t)|.
    The denominator stays the raw token count. Exact duplicates count in |λ|.

    Args:
        power: the weight is |λ(i,t)|^-power. 1 is the paper's, 0 is GRPO, ½ lies between them.

    Other arguments and errors as `grpo`; InputError also for a power that is not finite, or below 0.

    >>> tree = ProcessTree.build([[5, 6, 7], [5, 6, 8], [9]])
    >>> lambda_grpo(tree, [1, 0, 0]).weight
    array([[0.5, 0.5, 1. ],
           [0.5, 0.5, 1. ],
           [1. , 0. , 0. ]], dtype=float32)
    """
    if isinstance(power, bool) or not isinstance(power, int | float) or not 0 <= power < np.inf:
        raise InputError(f"credit 'lambda_grpo': power: expected a number from 0 on, got {power!r}")
    a_G = own_advantages(tree, rewards, advantages)
    weight = tree.size.astype(np.float64) ** -float(power)
    return token_credit(tree, a_G[:, None], tree.per_token(weight.astype(np.float32)), mask)


def lambda_grpo_matched(
    tree: ProcessTree,
    rewards: ArrayLike,
    *,
    advantages: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> TokenCredit:
    """λ-GRPO with GRPO's total |advantage|: token (i, t) gets (a_i, c / |λ(i,t)|).

    c = Σ|a_i| / Σ(|a_i| / |λ(i,t)|), both sums over the group's policy tokens, so that Σ w·|a| is what it
    is in GRPO. It is the control that separates λ-GRPO's direction from its smaller steps. If no token has
    an advantage, c = 1. The KL term is multiplied by c too.

    Arguments and errors as `grpo`.
    """
    a_G = own_advantages(tree, rewards, advantages)
    return _rescaled(tree, a_G, np.abs(a_G), mask)


def lambda_grpo_unique(
    tree: ProcessTree,
    rewards: ArrayLike,
    *,
    advantages: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> TokenCredit:
    """λ-GRPO normalised by unique tokens: token (i, t) gets (a_i, (ΣT_i / U) / |λ(i,t)|).

    The loss then divides the sum over unique tokens by their number U instead of the raw number ΣT_i: the
    mean weight of a group is 1, and the total weight of its KL term is the same as in GRPO. With a `mask`
    ΣT_i and U count policy tokens: U = Σ 1/|λ(i,t)| over them.

    Arguments and errors as `grpo`.
    """
    a_G = own_advantages(tree, rewards, advantages)
    return _rescaled(tree, a_G, np.ones_like(a_G), mask)


def _rescaled(tree: ProcessTree, advantages: Float64, mass: Float64, mask: ArrayLike | None) -> TokenCredit:
    """λ-GRPO with the factor that makes Σ mass_i·w_it equal to Σ mass_i, both over policy tokens."""
    policy = tree.policy_tokens(mask)
    share = tree.per_token(np.float32(1) / tree.size) * policy
    raw = float(mass @ policy.sum(axis=1))
    weighted = float(mass @ share.sum(axis=1, dtype=np.float64))
    scale = raw / weighted if weighted > 0 else 1.0
    return token_credit(tree, advantages[:, None], share * np.float32(scale), mask)
