"""A user's own credit, named as `my_module:my_credit` or `path/to/my_credit.py:my_credit`.

It is a function with the signature of `grpo`. Its result is checked each time, so that a mistake in it
raises an error before anything is trained on it.
"""

import functools
import inspect
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lambda_grpo.credit.token_credit import Credit, TokenCredit
from lambda_grpo.custom import load_custom
from lambda_grpo.errors import InputError
from lambda_grpo.tree import ProcessTree

_SIGNATURE = "(tree, rewards, *, advantages=None, mask=None)"


@functools.cache  # a module is imported once, and a file read once
def load_own(name: str) -> Credit:
    """The credit that `name` points to, with its results checked.

    Raises:
        InputError: as `load_custom`; not a function, or one that cannot be called as `grpo` is. The returned
            credit raises it for a result that is not a `TokenCredit` of the tree's shape. What the
            function raises passes through.
    """
    credit = load_custom("credit", name)
    if not callable(credit) or isinstance(credit, type):
        got = f"an object of type {type(credit).__name__}"
        raise InputError(f"credit {name!r}: expected a function {_SIGNATURE}, got {got}")
    signature = inspect.signature(credit)
    parameters = list(signature.parameters.values())
    by_name = [p.name for p in parameters[2:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    by_place = [p for p in parameters[:2] if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(by_place) < 2 or not {"advantages", "mask"} <= set(by_name):
        raise InputError(f"credit {name!r}: expected the parameters {_SIGNATURE}, got {signature}")

    @functools.wraps(credit)
    def checked(tree: ProcessTree, rewards: ArrayLike, **kwargs: Any) -> TokenCredit:
        result = credit(tree, rewards, **kwargs)
        _check(name, tree, result, kwargs.get("mask"))
        return result

    return checked


def _check(name: str, tree: ProcessTree, result: object, mask: ArrayLike | None) -> None:
    if not isinstance(result, TokenCredit):
        raise InputError(
            f"credit {name!r}: expected a TokenCredit, such as lambda_grpo.credit.token_credit returns, got "
            f"{type(result).__name__}"
        )
    outside = ~tree.policy_tokens(mask)
    for part in ("advantage", "weight"):
        values = getattr(result, part)
        what = f"credit {name!r}: {part}"
        if not isinstance(values, np.ndarray) or values.dtype != np.float32:
            got = f"dtype {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
            raise InputError(f"{what}: expected a float32 array, got {got}")
        if values.shape != outside.shape:
            raise InputError(
                f"{what}: expected shape {outside.shape} (completions, tokens), got {values.shape}"
            )
        _refuse(what, values, ~np.isfinite(values), "a finite number")
        _refuse(what, values, outside & (values != 0), "0 past a completion's end and where masked")
    _refuse(f"credit {name!r}: weight", result.weight, result.weight < 0, "0 or more")


def _refuse(what: str, values: np.ndarray, wrong: np.ndarray, expected: str) -> None:
    if wrong.any():
        i, t = np.argwhere(wrong)[0]
        raise InputError(f"{what}: completion #{i}, token #{t} has {values[i, t]}, expected {expected}")
