"""`lambda-grpo reproduce NAME`: run an experiment again and compare it with what is expected."""

import argparse
import importlib
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lambda_grpo.errors import InputError, missing_extra, unknown_name
from lambda_grpo.experiments import EXPERIMENTS, expected

DESCRIPTION = """\
Run one of our results again and say whether it agrees with experiments/NAME/expected.json. Without NAME:
list them. Every key of experiments/NAME/config.yaml is a flag, --key value (lists: a,b,c); the figures of
other settings are not compared. binary-tree and curves go on where they were stopped if --output names their
folder. The exit status is 1 if a figure disagrees.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="the experiment")
    parser.add_argument("--quick", action="store_true", help="a smaller version, in under a minute or so")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="results folder (default: runs/NAME-TIME)"
    )


def run(args: argparse.Namespace, flags: Sequence[str]) -> int:
    """Run the experiment, write and compare; the exit status: 1 if a figure disagrees.

    Raises:
        InputError: an unknown experiment or key, a value that does not fit, an output folder in use.
    """
    if args.name is None:
        if flags:
            raise InputError(f"unexpected argument {flags[0]!r}: name an experiment first")
        width = max(map(len, EXPERIMENTS))
        print("\n".join(f"{name:<{width}}  {line}" for name, line in EXPERIMENTS.items()))
        return 0
    if args.name not in EXPERIMENTS:
        raise unknown_name("experiment", args.name, EXPERIMENTS)
    try:
        from lambda_grpo import console
        from lambda_grpo.training import run_folder
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "train") from error
    source = folder_of(args.name)
    settings = settings_of(source / "config.yaml", args.quick)
    changed = override(settings, flags)
    output = args.output or Path(f"runs/{args.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    module = importlib.import_module(f"lambda_grpo.experiments.{args.name.replace('-', '_')}")
    goes_on = _open(output, getattr(module, "RESUMES_FROM", None))
    started = time.monotonic()
    figures = module.run(settings, output)
    packages = ("lambda-grpo", "torch", "transformers", "trl", "numpy")
    content = {
        "experiment": args.name,
        "settings": settings,
        "seconds": None if goes_on else round(time.monotonic() - started, 1),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in packages},
        "figures": figures,
    }
    run_folder.write_json(output / "results.json", content)
    console.CONSOLE.print(f"Everything is in {output}", markup=False)
    if changed:
        print(f"Not compared with what is expected: {', '.join(changed)} changed.")
        return 0
    part = "quick" if args.quick else "full"
    return _report(expected.compare(figures, expected.read(source / "expected.json", part)))


def folder_of(name: str) -> Path:
    """The folder of an experiment: experiments/NAME in a checkout, a copy of it in an installed wheel."""
    here = Path(__file__).parent
    packaged = here / "folders" / name
    return packaged if packaged.is_dir() else here.parents[2] / "experiments" / name


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


def settings_of(path: Path, quick: bool) -> dict[str, Any]:
    """The keys of a config.yaml, the section `quick` laid over the rest if wanted."""
    from lambda_grpo.training.run_folder import read_yaml

    content: dict[str, Any] = read_yaml(path)
    smaller = content.pop("quick")
    return content | (smaller if quick else {})


def override(settings: dict[str, Any], flags: Sequence[str]) -> list[str]:
    """Lay `--key value` flags over the settings, in place; return the keys whose value changed.

    Raises:
        InputError: an unknown key, or a value of another type than the one it replaces.
    """
    rest, changed = list(flags), []
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        key = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or key not in settings:
            raise unknown_name("flag", flag, [f"--{known}" for known in settings])
        if not equals:
            if not rest:
                raise InputError(f"{flag}: expected a value")
            value = rest.pop(0)
        new = _parse(key, value, settings[key])
        if new != settings[key]:
            changed.append(key)
        settings[key] = new
    return changed


def _parse(key: str, text: str, old: Any) -> Any:
    if isinstance(old, list):
        kind = type(old[0]) if old else str
        return [_parse(key, part.strip(), kind()) for part in text.split(",") if part.strip()]
    if isinstance(old, bool):  # bool("False") is True
        if text.lower() not in ("true", "false"):
            raise InputError(f"--{key}: expected true or false, got {text!r}")
        return text.lower() == "true"
    try:
        return type(old)(text)
    except ValueError:
        raise InputError(f"--{key}: expected {type(old).__name__}, got {text!r}") from None


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
