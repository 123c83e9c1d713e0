"""A credit of your own: the best completion of a group teaches most, and a shared step is pushed once.

A credit is a function with the signature of `grpo`. Name it wherever a credit is named, by its file or as a
dotted path; its own parameters are keywords after `mask`:

    lambda-grpo train --credit examples/my_credit.py:best_only --credit_kwargs '{"others": 0.2}'
    lambda-grpo train --compare grpo,lambda_grpo,my_package.my_module:my_credit

It is tried on a small group before training starts, and what it returns is checked. Run this file to see what
it gives four completions.
"""

import numpy as np
from numpy.typing import ArrayLike

from lambda_grpo import ProcessTree, TokenCredit
from lambda_grpo.credit import own_advantages, token_credit


def best_only(
    tree: ProcessTree,
    rewards: ArrayLike,
    *,
    advantages: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    others: float = 0.1,
) -> TokenCredit:
    """Token (i, t) gets (a_i, 1/|λ(i,t)|) if completion i is among the best, else `others` times that a_i."""
    a_G = own_advantages(tree, rewards, advantages)  # the trainer's, or else GRPO's
    a_G = np.where(a_G == a_G.max(), a_G, others * a_G)
    return token_credit(tree, a_G[:, None], tree.per_token(1 / tree.size), mask)


if __name__ == "__main__":
    tree = ProcessTree.build([[5, 6, 7], [5, 6, 8], [5, 9], [4]])
    print(best_only(tree, [1.0, 0.0, 0.0, 0.0]).weighted.round(2))
