"""Any credit, for a group in which no reward function could score some of the completions."""

import numpy as np

from lambda_grpo.credit.token_credit import Credit, TokenCredit
from lambda_grpo.tree import ProcessTree


def credit_group(
    credit: Credit, tree: ProcessTree, rewards: np.ndarray, advantages: np.ndarray, mask: np.ndarray | None
) -> TokenCredit:
    """What a credit gives a group in which some completions could not be scored.

    These stay in the tree and in |λ|, get advantage 0, and are in no mean over a step, so that they do not
    dilute what their siblings tell. Their weight stays, because it scales the KL term, which they have too.

    Args:
        credit: with its own parameters bound.
        tree: of G completions.
        rewards: (G,) NaN if no reward function could score the completion.
        advantages: (G,) the trainer's own; 0 for those.
        mask: (G, T) the tokens that enter the loss; None: all.
    """
    scored = ~np.isnan(rewards)
    rewards = np.where(scored, rewards, 0)
    result = credit(tree, rewards, advantages=advantages, mask=mask)
    if scored.all():
        return result
    told = tree.policy_tokens(mask) & scored[:, None]  # a completion masked whole is in no mean
    return TokenCredit(credit(tree, rewards, advantages=advantages, mask=told).advantage, result.weight)
