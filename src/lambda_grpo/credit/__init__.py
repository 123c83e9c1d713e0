"""ProcessTree + rewards → `TokenCredit`: who gets pushed, and how hard.

A credit is a pure function of the tree and the rewards of one group; it sees no log-probs. Each
token's loss is `weight * loss(logp, advantage)`, KL term included, so a credit changes the gradient of
token (i, t) by the factor `weight[i, t]`.

docs/credits.md compares the credits and says when to choose which. All take what `grpo` takes; their own
parameters are keywords after `mask`, which configs pass as `credit_kwargs`. To add one, write a function in a
file of this folder and name it in `registry.CREDITS`.
"""

from lambda_grpo.credit.branch import branch
from lambda_grpo.credit.grpo import grpo, process
from lambda_grpo.credit.lambda_grpo import lambda_grpo, lambda_grpo_matched, lambda_grpo_unique
from lambda_grpo.credit.optimistic import optimistic
from lambda_grpo.credit.registry import CREDITS, advantage_varies, get_credit, try_credit
from lambda_grpo.credit.tempo import tempo, vineppo
from lambda_grpo.credit.token_credit import (
    Credit,
    TokenCredit,
    group_advantage,
    own_advantages,
    path_sums,
    step_means,
    step_sums,
    step_values,
    token_credit,
)
from lambda_grpo.credit.treepo import treepo

__all__ = [
    "CREDITS",
    "Credit",
    "TokenCredit",
    "advantage_varies",
    "branch",
    "get_credit",
    "group_advantage",
    "grpo",
    "lambda_grpo",
    "lambda_grpo_matched",
    "lambda_grpo_unique",
    "optimistic",
    "own_advantages",
    "path_sums",
    "process",
    "step_means",
    "step_sums",
    "step_values",
    "tempo",
    "token_credit",
    "treepo",
    "try_credit",
    "vineppo",
]
