"""Credits by name."""

import inspect
from collections.abc import Mapping
from typing import Any

from lambda_grpo.credit.base import Credit
from lambda_grpo.credit.baselines import grpo, process
from lambda_grpo.credit.lambda_weights import lambda_grpo, lambda_grpo_matched, lambda_grpo_unique
from lambda_grpo.credit.soft_maximum import optimistic
from lambda_grpo.credit.subgroups import treepo
from lambda_grpo.credit.value_changes import tempo, vineppo
from lambda_grpo.errors import InputError, unknown_name

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
    """The credit registered as `name`, after checking that it takes the parameters `kwargs`.

    Raises:
        InputError: an unknown credit or an unknown parameter, with the nearest miss.
    """
    if name not in CREDITS:
        raise unknown_name("credit", name, CREDITS)
    own = list(inspect.signature(CREDITS[name]).parameters)[4:]  # after tree, rewards, advantages, mask
    for key in kwargs or {}:
        if key not in own:
            if not own:
                raise InputError(f"credit {name!r} takes no parameters, got credit_kwargs {key!r}")
            raise unknown_name(f"parameter of credit {name!r}", key, own)
    return CREDITS[name]
