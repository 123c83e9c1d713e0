"""Credits by name."""

import inspect
from collections.abc import Mapping
from typing import Any

from lambda_grpo.credit.custom_credit import load_own
from lambda_grpo.credit.grpo import grpo, process
from lambda_grpo.credit.lambda_grpo import lambda_grpo, lambda_grpo_matched, lambda_grpo_unique
from lambda_grpo.credit.optimistic import optimistic
from lambda_grpo.credit.tempo import tempo, vineppo
from lambda_grpo.credit.token_credit import Credit, TokenCredit, group_advantage
from lambda_grpo.credit.treepo import treepo
from lambda_grpo.errors import InputError, unknown_name
from lambda_grpo.tree import ProcessTree

CREDITS: dict[str, Credit] = {
    credit.__name__: credit
    for credit in (
        grpo,
        process,
        lambda_grpo,
        lambda_grpo_matched,
        lambda_grpo_unique,
        optimistic,
        tempo,
        treepo,
        vineppo,
    )
}


def get_credit(name: str, kwargs: Mapping[str, Any] | None = None) -> Credit:
    """The credit of that name, after checking that it takes the parameters `kwargs`.

    Args:
        name: a key of `CREDITS`, or a function of the user's: `my_module:my_credit`, `my_file.py:my_credit`.

    Raises:
        InputError: an unknown credit or an unknown parameter, with the nearest miss; as
            `custom_credit.load_own`.
    """
    if name not in CREDITS and ":" not in name:
        raise unknown_name("credit", name, CREDITS)
    credit = CREDITS[name] if name in CREDITS else load_own(name)
    parameters = list(inspect.signature(credit).parameters.values())[2:]  # after tree and rewards
    own = [p.name for p in parameters if p.name not in ("advantages", "mask") and p.kind != p.VAR_KEYWORD]
    for key in kwargs or {}:
        if key not in own and not any(p.kind == p.VAR_KEYWORD for p in parameters):
            if not own:
                raise InputError(f"credit {name!r} takes no parameters, got credit_kwargs {key!r}")
            raise unknown_name(f"parameter of credit {name!r}", key, own)
    return credit


def try_credit(name: str, kwargs: Mapping[str, Any] | None = None) -> TokenCredit:
    """What the credit gives a small group: four completions that share steps, with different rewards.

    A mistake in its parameters, or in a user's own credit, then shows before training starts.

    Raises:
        InputError: as `get_credit`, and as the credit itself; a parameter without default is missing.
    """
    credit = get_credit(name, kwargs)
    tree = ProcessTree.build([[1, 2, 3], [1, 2, 4], [1, 5], [6]])
    given = {"advantages": None, "mask": None, **(kwargs or {})}
    try:
        inspect.signature(credit).bind(tree, [], **given)
    except TypeError as error:
        raise InputError(f"credit {name!r}: {error}: set it in credit_kwargs") from None
    rewards = [1.0, 0.0, 0.25, 0.5]
    given["advantages"] = group_advantage(rewards)
    return credit(tree, rewards, **given)


def advantage_varies(result: TokenCredit) -> bool:
    """Whether the tokens of one completion get different advantages.

    Each token then needs a ratio of its own, because a sequence-level ratio has one advantage per completion.
    """
    first = result.advantage[:, :1]
    return bool(((result.advantage != first) & (result.weight != 0)).any())
