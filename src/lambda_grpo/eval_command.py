"""`lambda-grpo eval MODEL… --task NAME`: its options; `compare_models.py`, with torch, does the rest."""

import argparse
import os
import re
import time
from pathlib import Path

from lambda_grpo.errors import InputError, missing_extra
from lambda_grpo.tasks import get_task

DESCRIPTION = """\
How good models are at a task: greedy accuracy, accuracy over K samples per problem (avg@K), unbiased pass@k,
each with its 95% bootstrap interval over problems. One column per MODEL; of two models also the paired
difference, second minus first. An answer is right if its reward is at least 1.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""

    def add(name: str, metavar: str, default: float, text: str) -> None:
        flags = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        text += " (default: %(default)s)"
        parser.add_argument(*flags, type=type(default), default=default, metavar=metavar, help=text)

    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a local folder, a Hub id, or `embedded` for our own policy",
    )
    parser.add_argument(
        "--task", default="thinking-sums", metavar="NAME", help="`lambda-grpo tasks` lists them (%(default)s)"
    )
    parser.add_argument("--split", choices=("test", "train"), default="test", help="(default: %(default)s)")
    add("problems", "N", 512, "how many problems; a test split that holds fewer is taken whole")
    add("samples", "K", 4, "sampled completions per problem")
    parser.add_argument(
        "--pass_at", "--pass-at", type=_numbers, metavar="K,…", help="the k of pass@k (2, 4, 8, … and K)"
    )
    add("batch_size", "N", 128, "completions generated at a time")
    add("temperature", "T", 1.0, "of the samples")
    add("top_p", "P", 1.0, "nucleus sampling")
    add("top_k", "N", 0, "sample from the N likeliest tokens; 0 for all")
    add("max_new_tokens", "N", 512, "longest completion")
    add("seed", "N", 42, "of the problems and of the samples")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="the JSON file (default: eval-TASK-TIME.json)"
    )


def _numbers(text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers such as 1,8; got {text!r}") from error


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table and write the JSON file; the exit status.

    Raises:
        InputError: an option, task, model or output file that cannot be used, before any model is run.
    """
    if args.problems < 1:
        raise InputError(f"problems: got {args.problems}, expected at least 1")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    output = args.output or Path(f"eval-{re.sub('[^a-z0-9]+', '-', args.task.lower())}-{stamp}.json")
    _check_output(output)
    try:
        from lambda_grpo import compare_models, console
        from lambda_grpo.sampling import Sampling
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "train") from error
    names = ("max_new_tokens", "temperature", "top_p", "top_k", "batch_size", "seed", "samples")
    sampling = Sampling(**{name: getattr(args, name) for name in names})
    setting = compare_models.Setting(args.task, args.split, args.problems, sampling, args.pass_at)
    compare_models.compare(args.models, get_task(args.task), setting, output)
    console.CONSOLE.print(f"Every number, and the rewards of each problem, are in {output}")
    return 0


def _check_output(path: Path) -> None:
    if path.exists():
        raise InputError(
            f"output {str(path)!r} is already there, and nothing is overwritten: name another file with "
            "--output, or remove it yourself"
        )
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise InputError(f"output {str(path)!r}: {str(folder)!r} is no folder that can be written to")
