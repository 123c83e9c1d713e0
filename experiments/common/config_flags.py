"""The settings of an experiment: config.yaml, the section `quick`, and a flag for every key."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

NEGATIVE = re.compile(r"-[\d.]")


def settings_of(path: Path, quick: bool) -> dict[str, Any]:
    """The keys of a config.yaml; if `quick`, the section of that name is laid over the rest."""
    from lambda_grpo.whole_files import read_yaml

    content: dict[str, Any] = read_yaml(path)
    smaller = content.pop("quick")
    return content | (smaller if quick else {})


def add_flags(parser: argparse.ArgumentParser, settings: Mapping[str, Any]) -> None:
    """Give the parser a flag --key for every setting; its default says of which type the value is.

    A list is one value, with commas between its items. A flag that is left out sets nothing.
    """
    group = parser.add_argument_group("settings, the keys of config.yaml")
    for key, default in settings.items():
        names = dict.fromkeys((f"--{key}", f"--{key.replace('_', '-')}"))
        group.add_argument(
            *names,
            type=_reader(default),
            default=argparse.SUPPRESS,
            metavar="A,B" if isinstance(default, list) else "VALUE",
            help=f"(default: {_text(default)})".replace("%", "%%"),
        )


def with_negative_values(arguments: Sequence[str]) -> list[str]:
    """Join a flag and a value that begins with a minus sign, which argparse would take for a flag.

    >>> with_negative_values(["--r_neg", "-1,-0.5", "--steps", "3"])
    ['--r_neg=-1,-0.5', '--steps', '3']
    """
    joined: list[str] = []
    for argument in arguments:
        if joined and NEGATIVE.match(argument) and re.fullmatch(r"--[\w-]+", joined[-1]):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _reader(default: Any) -> Callable[[str], Any]:
    """A function that reads a flag's text as a value of the default's type."""
    if isinstance(default, list):
        one = _reader(default[0] if default else "")
        return lambda text: [one(part.strip()) for part in text.split(",") if part.strip()]
    kind = type(default)

    def read(text: str) -> Any:
        if kind is bool:  # bool("False") is True
            if text.lower() not in ("true", "false"):
                raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
            return text.lower() == "true"
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {kind.__name__}, got {text!r}") from None

    return read


def _text(value: Any) -> str:
    """A default as one would write it behind its flag."""
    return ",".join(map(str, value)) or '""' if isinstance(value, list) else str(value)
