"""A credit by its name: checked, and tried on a small group."""

import inspect
from collections.abc import Mapping
from typing import Any

from lambda_grpo.branching import BranchPlan
from lambda_grpo.credit.custom_credit import load_own
from lambda_grpo.credit.registry import CREDITS
from lambda_grpo.credit.token_credit import Credit, TokenCredit, group_advantage
from lambda_grpo.errors import InputError, unknown_name
from lambda_grpo.tree import ProcessTree

_GIVEN = ("advantages", "mask", "plan")  # by the trainer, never by credit_kwargs


def get_credit(name: str, kwargs: Mapping[str, Any] | None = None) -> Credit:
    """The credit of that name, after checking that it takes the parameters `kwargs`.

    Args:
        name: a key of `CREDITS`, or a function of the user's: `my_module:my_credit`, `my_file.py:my_credit`.

    Raises:
        InputError: an unknown credit or parameter, with the nearest miss; not a credit (`load_own`).
    """
    if name not in CREDITS and ":" not in name and not name.endswith(".py"):
        raise unknown_name("credit", name, CREDITS)
    credit = CREDITS[name] if name in CREDITS else load_own(name)
    parameters = list(inspect.signature(credit).parameters.values())[2:]  # after tree and rewards
    own = [p.name for p in parameters if p.name not in _GIVEN and p.kind != p.VAR_KEYWORD]
    for key in kwargs or {}:
        if key not in own and not any(p.kind == p.VAR_KEYWORD for p in parameters):
            if not own:
                raise InputError(f"credit {name!r} takes no parameters, got credit_kwargs {key!r}")
            raise unknown_name(f"parameter of credit {name!r}", key, own)
    return credit


def try_credit(name: str, kwargs: Mapping[str, Any] | None = None) -> TokenCredit:
    """What the credit gives a small group: four completions that share steps, with different rewards.

    A credit that takes a plan gets a group that was forked after its first token.
    So that a mistake in its parameters, or in a credit of the user's, shows before training starts.

    Raises:
        InputError: as `get_credit`, and as the credit itself; a parameter without default is missing.
    """
    credit = get_credit(name, kwargs)
    tree = ProcessTree.build([[1, 2, 3], [1, 2, 4], [1, 5], [6]])
    given = {"advantages": None, "mask": None, **(kwargs or {})}
    if takes_plan(credit):
        tree = ProcessTree.build([[1, 2, 3], [1, 2, 4], [5, 6], [5]])
        given["plan"] = BranchPlan((1,), (2,))
    try:
        inspect.signature(credit).bind(tree, [], **given)
    except TypeError as error:
        raise InputError(f"credit {name!r}: {error}: set it in credit_kwargs") from None
    rewards = [1.0, 0.0, 0.25, 0.5]
    given["advantages"] = group_advantage(rewards)
    return credit(tree, rewards, **given)


def takes_plan(credit: Credit) -> bool:
    """Whether the credit wants to know where the completions were forked."""
    return "plan" in inspect.signature(credit).parameters


def refuse_plan(name: str, where: str) -> None:
    """Raise InputError if the credit wants a plan, which is not known there."""
    if takes_plan(get_credit(name)):
        raise InputError(
            f"credit {name!r} needs to know where completions were forked, which {where} does not: choose "
            "another credit, or train with LambdaGRPOTrainer and branch_depths"
        )


def advantage_varies(result: TokenCredit) -> bool:
    """Whether the tokens of one completion get different advantages.

    Then each needs a ratio of its own too; a sequence-level ratio has one advantage per completion.
    """
    first = result.advantage[:, :1]
    return bool(((result.advantage != first) & (result.weight != 0)).any())
