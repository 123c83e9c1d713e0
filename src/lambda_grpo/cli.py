"""The command line. Heavy libraries are imported only by the command that needs them."""

import argparse
import sys
from collections.abc import Sequence

from lambda_grpo import __version__
from lambda_grpo.errors import LambdaGRPOError

_TRAIN_HELP = """\
Train a policy. Without arguments: the embedded policy learns thinking-sums with λ-GRPO in about two minutes.

Any other setting is a flag, --name value: every field of LambdaGRPOConfig, which has every field of TRL's
GRPOConfig (learning_rate, num_generations, loss_type, beta, max_steps, output_dir, ...).
--help-all lists them all."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lambda-grpo", description="λ-GRPO and its process trees.")
    parser.add_argument("--version", action="version", version=f"lambda-grpo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train a policy",
        description=_TRAIN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    train.add_argument(
        "--config",
        default="thinking-sums",
        metavar="RECIPE",
        help="a YAML file, or the name of one of ours",
    )
    for flag, text in (
        ("--model MODEL", "local folder, Hub id, or `embedded` (the default)"),
        ("--task TASK", "name of the task (thinking-sums)"),
        ("--credit CREDIT", "lambda_grpo (the default), grpo or process"),
        ("--output_dir DIR", "run folder (runs/TASK-CREDIT-TIME)"),
        ("--help-all", "list every setting"),
    ):
        train.epilog = f"{train.epilog or 'settings:'}\n  {flag:<20}{text}"
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0, or 2 after a message about bad input."""
    args, flags = _parser().parse_known_args(arguments)
    try:
        return _train(args.config, flags)
    except LambdaGRPOError as error:
        print(f"lambda-grpo: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nlambda-grpo: interrupted", file=sys.stderr)
        return 130


def _train(recipe: str, flags: Sequence[str]) -> int:
    try:
        from lambda_grpo import console, train
    except ModuleNotFoundError as error:
        raise LambdaGRPOError(
            f"`lambda-grpo train` needs {error.name}: pip install 'lambda-grpo[train]'"
        ) from error
    folder = train.train(train.resolve(recipe, flags))
    console.CONSOLE.print(f"Everything is in {folder}: the curves in curve.png, the policy in model/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
