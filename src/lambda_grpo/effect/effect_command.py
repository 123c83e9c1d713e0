"""`lambda-grpo effect MODEL ROLLOUTS`: its options; `gradients.py`, with torch, does the rest."""

import argparse
import json
from pathlib import Path
from typing import Any

from lambda_grpo.errors import InputError, expect, missing_extra

DESCRIPTION = """\
How far λ-GRPO's gradient (or another credit's) is from GRPO's, for MODEL on saved rollouts: the cosine
between the two, and the ratio of their norms. Exact: each shared token is computed once, and no gradient is
estimated. These are the gradients of a first update: ratios are 1, nothing is clipped, and there is no KL
term.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "model", metavar="MODEL", help="a local folder, a Hub id, or `embedded` for our own policy"
    )
    parser.add_argument(
        "rollouts",
        nargs="+",
        metavar="ROLLOUTS",
        help="run folders or files with token_ids and prompt_ids, which `lambda-grpo train` saves",
    )
    parser.add_argument(
        "--credit",
        default="lambda_grpo",
        metavar="NAME",
        help="compared with grpo: a credit's name, or my_module:my_credit (default: %(default)s)",
    )
    parser.add_argument(
        "--credit_kwargs", "--credit-kwargs", metavar="JSON", help="the credit's own parameters"
    )
    parser.add_argument(
        "--loss_type",
        "--loss-type",
        choices=("dapo", "grpo"),
        default="dapo",
        help="dapo: every token counts alike, as in bnpo and dr_grpo; grpo: every completion does "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="of the sampling (default: %(default)s)"
    )
    parser.add_argument(
        "--groups", type=int, metavar="N", help="the first N groups that push at all (default: every one)"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=4096,
        metavar="N",
        help="unique tokens in a pass; a larger group has its own pass (default: %(default)s)",
    )
    parser.add_argument(
        "--skip_bad", "--skip-bad", action="store_true", help="go on without rows that cannot be used"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("effect.json"),
        metavar="FILE",
        help="(default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Compute, print the two numbers and write the JSON file; the exit status.

    Raises:
        InputError: an option, model or rollouts that cannot be used.
    """
    expect(args.groups is None or args.groups > 0, "--groups", args.groups, "at least 1")
    expect(args.tokens > 0, "--tokens", args.tokens, "at least 1")
    expect(args.temperature > 0, "--temperature", args.temperature, "a number above 0")
    expect(args.output.parent.is_dir(), "--output", args.output, "a file in a folder that exists")
    kwargs = _credit_kwargs(args.credit_kwargs)
    try:
        from lambda_grpo.effect import measure_effect
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "train") from error
    names = ("model", "rollouts", "credit", "loss_type", "temperature", "groups", "tokens", "skip_bad")
    wanted = measure_effect.Wanted(credit_kwargs=kwargs, **{name: getattr(args, name) for name in names})
    measure_effect.measure(wanted, args.output)
    return 0


def _credit_kwargs(text: str | None) -> dict[str, Any]:
    try:
        kwargs = json.loads(text or "{}")
    except ValueError as error:
        raise InputError(f"--credit_kwargs: got {text!r}, which is no JSON: {error}") from error
    expect(isinstance(kwargs, dict), "--credit_kwargs", repr(text), "a JSON object such as '{\"tau\": 0.3}'")
    return dict(kwargs)
