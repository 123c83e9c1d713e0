"""The command line. Heavy libraries are imported only by the command that needs them."""

import argparse
import errno
import io
import os
import shlex
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from lambda_grpo import __version__
from lambda_grpo.credit import CREDITS
from lambda_grpo.errors import (
    InputError,
    LambdaGRPOError,
    did_you_mean,
    missing_extra,
    printable,
    unknown_name,
)

if TYPE_CHECKING:
    from lambda_grpo.training.options import TrainSettings

_FIRST_COMMANDS = """
Try:
  lambda-grpo train                     train a small policy in about two minutes, nothing else needed
  lambda-grpo report runs/FOLDER        see the hidden process rewards of a run, in one HTML page
  lambda-grpo tasks                     list what can be trained on"""

_TRAIN = """\
Train a policy. Without arguments: the embedded policy learns thinking-sums with λ-GRPO in about two minutes.

Any other setting is a flag, --name value: every field of LambdaGRPOConfig, which has every field of TRL's
GRPOConfig (learning_rate, num_generations, loss_type, beta, max_steps, output_dir, ...).
--help-all lists them all."""

_OTHER_CREDITS = ", ".join(name for name in CREDITS if name != "lambda_grpo")
_CREDIT = textwrap.fill(
    f"lambda_grpo (the default), {_OTHER_CREDITS}, or a function of yours: my_module:my_credit",
    width=103,
    initial_indent="  --credit CREDIT     ",
    subsequent_indent=" " * 22,
)
_TRAIN_SETTINGS = f"""\
settings:
  --model MODEL       local folder, GGUF file, Hub id, smollm2-135m, or `embedded` (the default)
  --task TASK         name of the task (thinking-sums); `lambda-grpo tasks` lists them
  --chat MODE         ask a task's texts as a chat: on, off, or auto: where the model has a chat template
  --system_prompt TXT the chat's system message
{_CREDIT}
  --credit_kwargs KW  the credit's own parameters as JSON, such as '{{"power": 0.5}}' for lambda_grpo
  --output_dir DIR    run folder (runs/TASK-CREDIT-TIME); an unfinished run there goes on
  --overwrite         start over: remove the run that lies in the run folder
  --compare A,B       train with each of these credits from the same start, and show them side by side
  --validate_every N  validate on held-out problems every N steps and keep the best checkpoint
  --early_stopping_patience N  stop after N validations without a new best
  --report_every N    refresh report.html in the run folder every N steps
  --dtype DTYPE       precision of the weights: float32 (the default), bfloat16, float16, auto
  --lora_r R          train low-rank adapters instead of all weights
  --dry_run           two steps with a tiny random model, offline, to see whether the settings fit together
  --help-all          list every setting"""


_COMMANDS = {
    "report": ("lambda_grpo.report.report_command", "show the hidden process reward model of rollouts"),
    "watch": ("lambda_grpo.report.watch_command", "show the report of a running training in your browser"),
    "effect": ("lambda_grpo.effect.effect_command", "how far a credit's gradient is from GRPO's"),
    "eval": ("lambda_grpo.evaluating.eval_command", "how good models are at a task"),
}
"""Command → its module, imported only when it is asked for, and its line in the help.

Each module has `DESCRIPTION`, `add_arguments(parser)`, and `run(args)`, which returns the exit status.
"""


def _parser(command: str | None) -> argparse.ArgumentParser:
    """The parser; the options of some commands are imported only where `command` asks for them.

    It leaves the parser of the command in `parser`.
    """
    parser = argparse.ArgumentParser(prog="lambda-grpo", description="λ-GRPO and its process trees.")
    parser.add_argument("--version", action="version", version=f"lambda-grpo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train a policy",
        description=_TRAIN,
        epilog=_TRAIN_SETTINGS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    train.add_argument(
        "--config",
        default="",
        metavar="RECIPE",
        help="a YAML file, or the name of one of ours (default for embedded, default-other-model for others)",
    )
    for name, (module, line) in _COMMANDS.items():
        each = commands.add_parser(name, help=line, allow_abbrev=False)
        if name == command:
            asked = import_module(module)
            each.description = asked.DESCRIPTION
            asked.add_arguments(each)
    commands.add_parser("tasks", help="list the tasks")
    for each in commands.choices.values():
        each.set_defaults(parser=each)
    if command and not command.startswith("-") and command not in commands.choices:
        parser.error(printable(str(unknown_name("command", command, commands.choices))))
    return parser


def _unrecognised(parser: argparse.ArgumentParser, rest: Sequence[str]) -> str:
    """What is said of arguments that a parser does not know, with the option that is nearest to the first."""
    options = [option for action in parser._actions for option in action.option_strings]
    given = next((each.partition("=")[0] for each in rest if each.startswith("-")), "")
    return printable(f"unrecognized arguments: {' '.join(rest)}") + did_you_mean(given, options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0, or 2 after a message about bad input."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # where its encoding has no λ
    try:
        try:
            return _run_command(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            print(end="", flush=True)  # what cannot be written shows here, not when Python ends
    except BrokenPipeError:  # the reader, such as `| head`, has had enough
        _drop_output()
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _drop_output()
        print(f"lambda-grpo: error{_process()}: cannot write: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nlambda-grpo: interrupted", file=sys.stderr)
        return 130


def _drop_output() -> None:
    """Send what Python still holds for stdout nowhere, because it would try to write it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_command(given: Sequence[str]) -> int:
    parser = _parser(given[0] if given else None)
    if not given:
        parser.print_help()
        print(_FIRST_COMMANDS)
        return 0
    args, rest = parser.parse_known_args(given)
    if rest and args.command != "train":
        asked = args.parser if given[0] == args.command else parser
        asked.error(_unrecognised(asked, rest))
    try:
        if args.command == "train":
            return _train(args.config, rest)
        _expect_alone(args.command)
        if args.command in _COMMANDS:
            status: int = import_module(_COMMANDS[args.command][0]).run(args)
            return status
        return _tasks()
    except LambdaGRPOError as error:
        print(f"lambda-grpo: error{_process()}: {printable(str(error))}", file=sys.stderr)
        return 2


def _train(recipe: str, flags: Sequence[str]) -> int:
    try:
        from lambda_grpo import console
        from lambda_grpo.training import multi_rank, settings
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "train") from error
    # TRL 1.16 sets what transformers 5.24 has renamed, at every start.
    warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing", FutureWarning)
    recipe = recipe or settings.default_recipe(flags)  # a dry run replaces the model, not the recipe
    resolved = settings.resolve(recipe, flags)
    multi_rank.expect_all_started()
    multi_rank.quiet_others()
    with tempfile.TemporaryDirectory(prefix="lambda-grpo-") as aside:
        if resolved.options.dry_run:
            from lambda_grpo.training import dry_run

            _expect_alone("train --dry_run")
            replaced = dry_run.replacements(resolved, flags, Path(aside))
            console.CONSOLE.print(dry_run.describe(resolved, replaced), markup=False, highlight=False)
            resolved = settings.resolve(
                recipe, [*flags, *(f"--{name}={replaced[name]}" for name in replaced)]
            )
        settings.check_vllm(resolved.config)
        folder, what = _run(resolved)
    if folder.exists():
        console.CONSOLE.print(f"Everything is in {folder}: {what}", markup=False)
    else:
        console.CONSOLE.print(
            "The dry run ended well. Its run folder is removed; --output_dir would keep it."
        )
    return 0


def _run(resolved: "TrainSettings") -> tuple[Path, str]:
    """Train, or compare credits; the folder and what is in it."""
    from lambda_grpo.training import compare_credits, train

    if resolved.options.compare:
        folder = compare_credits.compare(resolved)
        again = shlex.join(["lambda-grpo", "report", str(folder)])
        what = (
            "the curves in compare.png, the numbers in compare.json, each run in its own folder, the runs "
            f"side by side in report.html, which `{again}` makes anew"
        )
    else:
        trained = train.train(resolved)
        train.show(trained)
        folder = trained.folder
        what = "the curves in curve.png, the policy in model/, what was learnt from in report.html"
    return folder, what


def _processes() -> int:
    """Of how many processes this job is, by what torchrun and `accelerate launch` set."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _process() -> str:
    """Which of them this is, for messages; nothing if alone."""
    return f" (process {os.environ.get('RANK', '0')} of {_processes()})" if _processes() > 1 else ""


def _expect_alone(command: str) -> None:
    if _processes() > 1:
        raise InputError(
            f"lambda-grpo {command}: got {_processes()} processes, expected one: leave torchrun or "
            "accelerate launch away"
        )


def _tasks() -> int:
    from lambda_grpo.tasks import list_tasks

    tasks = list_tasks()
    width = max(map(len, tasks))
    for name, line in tasks.items():
        print(f"{name:<{width}}  {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
