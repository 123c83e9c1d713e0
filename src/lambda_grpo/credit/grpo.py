"""GRPO, and GRPO as the process reward model it hides.

Sullivan & Koller, "GRPO is Secretly a Process Reward Model", arXiv 2509.21154, section 3.
"""

from numpy.typing import ArrayLike

from lambda_grpo.credit.token_credit import TokenCredit, own_advantages, step_values, token_credit
from lambda_grpo.tree import ProcessTree


def grpo(
    tree: ProcessTree,
    rewards: ArrayLike,
    *,
    advantages: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> TokenCredit:
    """Plain GRPO: every token of completion i gets (a_i, 1).

    Shao et al., "DeepSeekMath", arXiv 2402.03300.

    Args:
        tree: the group's process tree.
        rewards: (G,) finite outcome rewards.
        advantages: (G,) the trainer's own a_i, if they are not `group_advantage(rewards)`.
        mask: (G, T) true where a policy token enters the loss; other tokens get zeros. It does not
            change the tree.

    Raises:
        InputError: shapes that do not fit the tree, or numbers that are not finite.
    """
    return token_credit(tree, own_advantages(tree, rewards, advantages)[:, None], 1.0, mask)


def process(
    tree: ProcessTree,
    rewards: ArrayLike,
    *,
    advantages: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> TokenCredit:
    """The process reward model GRPO hides: token (i, t) gets (A(λ(i,t)), 1).

    A(λ) = (R̂(λ) - mean r) / (std r + ε) with the step reward R̂(λ) = mean of r over λ (arXiv 2509.21154,
    section 3), which is the mean of a over λ. Its gradient is `grpo`'s if no ratio is clipped and all
    tokens share one denominator (losses `dapo`, `bnpo`, `dr_grpo`). It is not with per-sequence means or
    sequence-level ratios. Completions without a policy token in `mask`, such as truncated ones, are left out
    of the mean, because GRPO's sum leaves them out too.

    Arguments and errors as `grpo`.
    """
    a_G = own_advantages(tree, rewards, advantages)
    return token_credit(tree, tree.per_token(step_values(tree, a_G, mask)), 1.0, mask)
