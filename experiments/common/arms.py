"""An arm of an experiment: a credit, with parameters of its own behind it, as in `lambda_grpo power=0.5`."""

from typing import Any

from lambda_grpo.errors import InputError


def credit_of(arm: str) -> tuple[str, dict[str, Any]]:
    """The name of the credit, and its parameters.

    Raises:
        InputError: something behind the name that is not `parameter=number`.

    >>> credit_of("lambda_grpo power=0.5"), credit_of("grpo")
    (('lambda_grpo', {'power': 0.5}), ('grpo', {}))
    """
    name, *given = arm.split()
    try:
        return name, {key: float(value) for key, value in (each.split("=") for each in given)}
    except ValueError:
        raise InputError(
            f"credits: expected a credit, such as grpo, or one with parameters, such as 'lambda_grpo "
            f"power=0.5', got {arm!r}"
        ) from None
