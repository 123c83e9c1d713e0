"""`lambda-grpo watch RUN [--port 8765]`."""

import argparse
from pathlib import Path

from lambda_grpo.errors import InputError, expect, printable
from lambda_grpo.report.content import ReportOptions
from lambda_grpo.report.report_command import add_reading_options
from lambda_grpo.report.watch import LivePage, WatchServer, version_of
from lambda_grpo.rollouts.tokens import Tokeniser

DESCRIPTION = """\
Show the report of a training that still runs, in your browser: the page loads itself anew when there are new
rollouts. It is served to this machine only, until Ctrl-C.
"""

# What a training run has written before its first rollouts.
_OF_A_RUN = ("config.yaml", ".lock", "metrics.jsonl", "rollouts", "completions", "checkpoint-*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "run",
        metavar="RUN",
        help="the run folder (ours, TRL's, verl's), a folder of such folders, or a rollout file",
    )
    parser.add_argument(
        "--port", type=int, default=8765, help="of 127.0.0.1; 0 for any that is free (default: %(default)s)"
    )
    add_reading_options(parser)


def run(args: argparse.Namespace) -> int:
    """Serve the report until Ctrl-C; the exit status.

    Raises:
        InputError: a folder without a run, a port that cannot be had, or options that cannot be used.
    """
    with WatchServer(LivePage(args.run, _options(args)), args.port) as server:
        print(f"{printable(args.run)} is shown at {server.url} until you press Ctrl-C", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def _options(args: argparse.Namespace) -> ReportOptions:
    expect(0 <= args.port < 2**16, "--port", args.port, "0 to 65535")
    expect(args.group_size is None or args.group_size > 1, "--group_size", args.group_size, "at least 2")
    folder = Path(args.run)
    if not folder.exists():
        raise InputError(f"{folder}: no such file or folder")
    if version_of(folder) == "none" and not _is_run(folder):
        raise InputError(
            f"{folder}: holds no run: expected the folder of a training that has begun (its output_dir), or "
            "rollouts as `lambda-grpo report` reads them"
        )
    if args.tokenizer:
        Tokeniser(args.tokenizer)  # a wrong name is said now, not on the page
    return ReportOptions(
        tokenizer=args.tokenizer,
        skip_bad=True,
        group_size=args.group_size,
        correct_at=args.correct_at,
        groups=args.groups,
    )


def _is_run(folder: Path) -> bool:
    """Whether a run has begun in the folder or, for a comparison, in a folder in it."""
    return any(next(folder.glob(f"{below}{name}"), None) for below in ("", "*/") for name in _OF_A_RUN)
