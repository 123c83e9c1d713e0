"""The command line of `python -m experiments`: run a result again, compare it with what is expected."""

import argparse
import importlib
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from experiments.common import config_flags, expected
from lambda_grpo.errors import InputError, LambdaGRPOError, missing_extra, printable, unknown_name

PROGRAM = "python -m experiments"
DESCRIPTION = """\
Run one of our results again and say whether it agrees with experiments/NAME/expected.json. Without NAME:
list them. NAME --help lists the settings of one. The figures of other settings are not compared. Those that
keep each finished run (runs.jsonl) go on where they were stopped if --output names their folder. The exit
status is 1 if a figure disagrees.
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as those of other bad input are."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """List the experiments, or run one; the exit status: 1 if a figure disagrees, 2 after bad input."""
    given = config_flags.with_negative_values(sys.argv[1:] if arguments is None else arguments)
    try:
        if given:
            return _run(given)
        width = max(map(len, names()))
        print("\n".join(f"{name:<{width}}  {title(name)}" for name in names()))
        return 0
    except LambdaGRPOError as error:
        print(f"{PROGRAM}: error: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{PROGRAM}: interrupted", file=sys.stderr)
        return 130


def names() -> list[str]:
    """Every experiment: the folders beside common/ with a file run.py."""
    return sorted(path.parent.name for path in Path(__file__).parents[1].glob("*/run.py"))


def folder_of(name: str) -> Path:
    """Where an experiment's config.yaml, expected.json and README.md lie."""
    return Path(__file__).parents[1] / name


def title(name: str) -> str:
    """What an experiment is, from the heading of its README.md: `# NAME: title`."""
    heading = (folder_of(name) / "README.md").read_text("utf-8").partition("\n")[0]
    return heading.partition(": ")[2]


def _run(given: Sequence[str]) -> int:
    """Run an experiment, write and compare; the exit status.

    Raises:
        InputError: an unknown experiment or key, a value that does not fit, an output folder in use.
    """
    args, flags = _parse(given)
    from experiments.common import resumable_runs
    from lambda_grpo import console
    from lambda_grpo.whole_files import write_json

    name, source = args.name, folder_of(args.name)
    as_configured = config_flags.settings_of(source / "config.yaml", args.quick)
    settings = as_configured | flags
    changed = [key for key, value in settings.items() if value != as_configured[key]]
    output = args.output or Path(f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    module = importlib.import_module(f"experiments.{name}.run")
    goes_on = _open(output, getattr(module, "RESUMES_FROM", None))
    started = time.monotonic()
    with resumable_runs.piece_of(args.minutes) as piece:
        figures = module.run(settings, output)
    packages = ("lambda-grpo", "torch", "transformers", "trl", "numpy")
    content = {
        "experiment": name,
        "settings": settings,
        "seconds": None if goes_on else round(time.monotonic() - started, 1),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in packages},
        "figures": figures,
    }
    write_json(output / "results.json", content)
    console.CONSOLE.print(f"Everything is in {output}", markup=False)
    if piece.left:
        print(f"{piece.left} runs are left: the same command with --output {output} goes on.")
        return 0
    if changed:
        print(f"Not compared with what is expected: {', '.join(changed)} changed.")
        return 0
    part = "quick" if args.quick else "full"
    return _report(expected.compare(figures, expected.read(source / "expected.json", part)))


def _parse(given: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """NAME, --quick and --output; and the settings that flags change."""
    parser = _Parser(prog=PROGRAM, description=DESCRIPTION, allow_abbrev=False)
    commands = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    settings: dict[str, Any] = {}
    for name in names():
        chosen = commands.add_parser(name, help=title(name), description=title(name), allow_abbrev=False)
        if name == given[0]:
            chosen.add_argument("--quick", action="store_true", help="a smaller version, about a minute")
            chosen.add_argument("-o", "--output", type=Path, metavar="DIR",
                                help="results folder (default: runs/NAME-TIME)")  # fmt: skip
            chosen.add_argument("--minutes", type=float, default=float("inf"), metavar="M",
                                help="begin no further run after M minutes (runs.jsonl)")  # fmt: skip
            settings = _settings(name)
            config_flags.add_flags(chosen, settings)
    if not given[0].startswith("-") and given[0] not in names():
        raise unknown_name("experiment", given[0], names())
    args, unknown = parser.parse_known_args(given)
    if unknown:
        raise unknown_name("flag", unknown[0].partition("=")[0], [f"--{key}" for key in settings])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("got several ranks, expected one: leave torchrun or accelerate launch away")
    return args, {key: value for key, value in vars(args).items() if key in settings}


def _settings(name: str) -> dict[str, Any]:
    try:
        return config_flags.settings_of(folder_of(name) / "config.yaml", quick=False)
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "train") from error


def _open(output: Path, resumes_from: str | None) -> bool:
    """Make the results folder; whether an experiment goes on there, with the file `resumes_from` in it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        present = sorted(path.name for path in output.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"output {str(output)!r}: cannot be a results folder: {error}") from error
    if present and resumes_from not in present:
        raise InputError(
            f"output {str(output)!r} already holds other files ({', '.join(present[:4])}), and nothing is "
            "overwritten: choose another --output"
        )
    return bool(present)


def _report(checks: Sequence[expected.Check]) -> int:
    """Print each check; 1 if one disagrees."""
    from rich.table import Table

    from lambda_grpo import console

    if not checks:
        print("Nothing to compare with: expected.json expects no figure of these settings.")
        return 0
    shown = Table("figure", "expected", "got", "")
    for check in checks:
        verdict = "agrees" if check.agrees else "DISAGREES"
        shown.add_row(check.name, _bounds(check), f"{check.got:.4g}", verdict)
    console.CONSOLE.print(shown)
    wrong = [check for check in checks if not check.agrees]
    print(f"{len(checks) - len(wrong)} of {len(checks)} figures agree with what is expected.")
    return 1 if wrong else 0


def _bounds(check: expected.Check) -> str:
    low, high = (format(bound, ".3g") for bound in (check.low, check.high))
    return f"at most {high}" if low == "-inf" else f"at least {low}" if high == "inf" else f"{low} to {high}"
