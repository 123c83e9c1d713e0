"""Credit for the change that a step makes: A(λ) - A(parent), the value after it minus the value before.

A(λ), the mean advantage of the completions that share a prefix, is the tree's own Monte Carlo value of that
prefix. Along a path the changes add up to A(leaf) - A(root), and A(root) is 0 for GRPO's advantages. A step
that all completions share changes nothing, so the root's change is 0. Completions whose tokens are
all masked are left out of the values, as in `process`.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lambda_grpo.credit.token_credit import Float64, TokenCredit, own_advantages, step_values, token_credit
from lambda_grpo.tree import ProcessTree


def tempo(
    tree: ProcessTree,
    rewards: ArrayLike,
    *,
    advantages: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> TokenCredit:
    """TEMPO: token (i, t) gets (a_i + [t = s(λ)]·(A(λ) - A(parent)), 1) for λ = λ(i,t).

    Tran et al., "Exploiting Tree Structure for Credit Assignment in RL Training of LLMs", arXiv 2509.18314:
    GRPO's advantage plus a temporal difference of prefix values, which is 0 except on the first token after
    a branch. If that token is masked (a tool's answer made the branch, not the policy) the difference is
    lost.

    Arguments and errors as `grpo`.
    """
    a_G = own_advantages(tree, rewards, advantages)
    change = tree.per_token(_changes(tree, step_values(tree, a_G, mask)))
    change[:, 1:] *= tree.step_index[:, 1:] != tree.step_index[:, :-1]  # the first token of a step only
    return token_credit(tree, a_G[:, None].astype(np.float32) + change, 1.0, mask)


def vineppo(
    tree: ProcessTree,
    rewards: ArrayLike,
    *,
    advantages: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> TokenCredit:
    """VinePPO's one-step advantage: every token of the step of λ gets (A(λ) - A(parent), 1).

    Kazemnejad et al., arXiv 2410.01679. Adapted: VinePPO samples extra completions from every step to
    estimate its value; here the values are those of the group's own tree, so a step has as many samples as
    completions, and after the last branch a completion's value is its own outcome.

    Arguments and errors as `grpo`.
    """
    a_G = own_advantages(tree, rewards, advantages)
    return token_credit(tree, tree.per_token(_changes(tree, step_values(tree, a_G, mask))), 1.0, mask)


def _changes(tree: ProcessTree, values: Float64) -> NDArray[np.float32]:
    """(N,): a node's value minus its parent's; 0 for the root."""
    changes = values - values[tree.parent]
    changes[0] = 0
    return changes.astype(np.float32)
