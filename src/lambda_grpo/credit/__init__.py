"""ProcessTree + rewards → `TokenCredit`: who gets pushed, and how hard.

A credit is a pure function of the tree and the rewards of one group; it sees no log-probs. Each
token's loss is `weight * loss(logp, advantage)`, KL term included, so a credit multiplies the gradient of
token (i, t) by `weight[i, t]`.

docs/credits.md compares the credits and says when to choose which. All take what `grpo` takes; their own
parameters are keywords after `mask`, which configs pass as `credit_kwargs`. To add one, write a function in a
file of this folder and import it in `registry.py`.
"""

from lambda_grpo.credit.lookup import advantage_varies as advantage_varies
from lambda_grpo.credit.lookup import get_credit as get_credit
from lambda_grpo.credit.lookup import refuse_plan as refuse_plan
from lambda_grpo.credit.lookup import takes_plan as takes_plan
from lambda_grpo.credit.lookup import try_credit as try_credit
from lambda_grpo.credit.registry import *  # noqa: F403 (every credit, CREDITS)
from lambda_grpo.credit.token_credit import Credit as Credit
from lambda_grpo.credit.token_credit import TokenCredit as TokenCredit
from lambda_grpo.credit.token_credit import group_advantage as group_advantage
from lambda_grpo.credit.token_credit import own_advantages as own_advantages
from lambda_grpo.credit.token_credit import path_sums as path_sums
from lambda_grpo.credit.token_credit import step_means as step_means
from lambda_grpo.credit.token_credit import step_sums as step_sums
from lambda_grpo.credit.token_credit import step_values as step_values
from lambda_grpo.credit.token_credit import token_credit as token_credit
from lambda_grpo.credit.unscored import credit_group as credit_group
