"""`lambda-grpo report RUN… [-o report.html]`."""

import argparse
import sys

from lambda_grpo.errors import printable
from lambda_grpo.report.content import ReportOptions
from lambda_grpo.report.page import write_report
from lambda_grpo.report.verdict import plural

DESCRIPTION = """\
Show the hidden process reward model of rollouts, whatever trained the model: one self-contained HTML page
and a JSON file with every number on it. Two or more runs stand side by side: their curves and final figures,
who got which problem right, and the same prompt's groups next to each other.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="RUN",
        help="a rollout file, a run folder (ours, TRL's, verl's), or a folder of such folders; NAME=RUN "
        "gives it a name",
    )
    parser.add_argument(
        "-o", "--output", default="report.html", metavar="FILE", help="the page (default: %(default)s)"
    )
    parser.add_argument(
        "--skip_bad",
        "--skip-bad",
        action="store_true",
        help="go on without rows that cannot be used, and count them",
    )
    add_reading_options(parser)


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Declare how rollouts are read and shown, for this command and `lambda-grpo watch`."""
    defaults = ReportOptions()
    parser.add_argument(
        "--tokenizer",
        metavar="PATH_OR_ID",
        help="folder, tokenizer.json or Hub id of the policy's tokenizer: for text without token ids, and to "
        "show ids as text (without it, words are taken for tokens, and ids are shown by RUN/tokenizer)",
    )
    parser.add_argument(
        "--group_size",
        "--group-size",
        type=int,
        metavar="N",
        help="completions per prompt, where the file does not tell",
    )
    parser.add_argument(
        "--correct_at",
        "--correct-at",
        type=float,
        default=defaults.correct_at,
        metavar="REWARD",
        help="a completion is right from this reward on (default: %(default)s)",
    )
    parser.add_argument(
        "--groups",
        type=int,
        default=defaults.groups,
        metavar="N",
        help="how many groups the page shows, at most; with several runs also how many problems it shows "
        "side by side (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the report and say what was written; the exit status.

    Raises:
        InputError: rollouts, paths or options that cannot be used.
    """
    options = ReportOptions(
        tokenizer=args.tokenizer,
        skip_bad=args.skip_bad,
        group_size=args.group_size,
        correct_at=args.correct_at,
        groups=args.groups,
    )
    written = write_report(args.paths, args.output, options)
    for note in written.notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    left = written.left_out
    if left.rows or left.files:
        print(
            f"left out: {plural(left.rows, 'row')} (in them {plural(left.groups, 'whole group')}) and "
            f"{plural(left.files, 'file')}:",
            *map(printable, left.examples[:5]),
            sep="\n  ",
            file=sys.stderr,
        )
    for answer in written.answers:
        print(printable(answer))
    html, twin = printable(str(written.html)), printable(str(written.json))
    print(f"{html}: {plural(written.groups, 'group')} measured, {written.shown} shown in full; {twin}")
    for sentence in written.forks:
        print(printable(sentence))
    return 0
