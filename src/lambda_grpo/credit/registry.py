"""The credits, one line each: every function imported here is a value of `--credit` under its name.

`lambda_grpo.credit` has them all, and the help of the command line lists them.
"""

import types as _types

from lambda_grpo.credit.grpo import grpo as grpo
from lambda_grpo.credit.grpo import process as process
from lambda_grpo.credit.lambda_grpo import lambda_grpo as lambda_grpo
from lambda_grpo.credit.lambda_grpo import lambda_grpo_matched as lambda_grpo_matched
from lambda_grpo.credit.lambda_grpo import lambda_grpo_unique as lambda_grpo_unique
from lambda_grpo.credit.optimistic import optimistic as optimistic
from lambda_grpo.credit.tempo import tempo as tempo
from lambda_grpo.credit.tempo import vineppo as vineppo
from lambda_grpo.credit.token_credit import Credit as Credit
from lambda_grpo.credit.treepo import treepo as treepo

# It comes last in lists, because it needs completions that were forked.
# isort: split
from lambda_grpo.credit.branch import branch as branch

CREDITS: dict[str, Credit] = {
    name: value for name, value in globals().items() if isinstance(value, _types.FunctionType)
}
