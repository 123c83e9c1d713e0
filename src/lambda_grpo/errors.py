"""Every error this package raises on purpose.

A message says what is wrong, where (which completion, key or file), what was got, what was
expected, and what to do.
"""

import traceback
from collections.abc import Iterable
from difflib import get_close_matches


class LambdaGRPOError(Exception):
    """Base class of every error raised by lambda-grpo on purpose."""


class InputError(LambdaGRPOError, ValueError):
    """The caller handed in something unusable: wrong shape, type, value, name or path."""


def printable(text: str) -> str:
    """The text with characters that would steer a terminal, or not show, written as escapes.

    >>> print(printable("red \x1b[31m\u202e λ"))
    red \\x1b[31m\\u202e λ
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def unknown_name(kind: str, name: str, known: Iterable[str], listed_by: str = "") -> InputError:
    """The error for a `name` that is not among the `known` ones, with the nearest miss.

    `listed_by` is the command that lists the known names, if they are too many for one message.

    >>> print(unknown_name("credit", "lamda_grpo", ["grpo", "lambda_grpo"]))
    unknown credit 'lamda_grpo': did you mean 'lambda_grpo'? Known: grpo, lambda_grpo
    """
    known = sorted(known)
    hint = did_you_mean(name, known) or "."
    every = f"`{listed_by}` lists all {len(known)}" if listed_by else f"Known: {', '.join(known)}"
    return InputError(f"unknown {kind} {name!r}{hint} {every}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """How a message goes on if a `name` is near a known one, in whatever case; else nothing.

    >>> did_you_mean("--corect-at", ["--correct-at", "--groups"]), did_you_mean("x", ["--groups"])
    (": did you mean '--correct-at'?", '')
    >>> did_you_mean("Lambda_GRPO", ["grpo", "lambda_grpo"])
    ": did you mean 'lambda_grpo'?"
    """
    lowered = {each.lower(): each for each in known}
    near = get_close_matches(name.lower(), lowered, n=1)
    return f": did you mean {lowered[near[0]]!r}?" if near else ""


def missing_extra(package: str, extra: str) -> InputError:
    """The error for a `package` that only an extra brings.

    >>> print(missing_extra("math-verify", "tasks"))
    this needs the package math-verify, which is not installed: pip install 'lambda-grpo[tasks]'
    """
    return InputError(
        f"this needs the package {package}, which is not installed: pip install 'lambda-grpo[{extra}]'"
    )


def failure(error: Exception) -> str:
    """What the caller's code raised, and where: `KeyError: 'a' (my_task.py, line 3)`.

    An error without a place is one of the call itself, such as an argument that is missing.
    """
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is the call in our own code
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def expect(holds: bool, name: str, got: object, expected: str) -> None:
    """Raise an `InputError` that names what was wrong, unless the condition holds."""
    if not holds:
        raise InputError(f"{name}: got {got}, expected {expected}")
