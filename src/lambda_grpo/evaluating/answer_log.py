"""A model's answers to a benchmark, one JSON object per line, added as they come; a rerun goes on there.

The first line holds the settings that the answers depend on. A last line that was cut off, as a killed run
may leave, is dropped. Nothing is added under other settings.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lambda_grpo.errors import InputError


@dataclass(frozen=True)
class Answered:
    """One answer: sample number `row % samples` to problem `row // samples`; its tokens and its reward."""

    row: int
    completion: str
    tokens: int
    reward: float


class AnswerLog:
    """The answers in a file, by row; `add` appends.

    Raises:
        InputError: the file holds answers under other settings, or something else.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.done: dict[int, Answered] = {}
        self._settings = json.loads(json.dumps(settings))
        if path.exists():
            self._read()

    def add(self, answers: Iterable[Answered]) -> None:
        """Append answers; they are on the disk when this returns."""
        new = list(answers)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as handle:
            if not handle.tell():
                handle.write(_line({"settings": self._settings}))
            handle.writelines(_line(asdict(answer)) for answer in new)
            handle.flush()
            os.fsync(handle.fileno())
        self.done |= {answer.row: answer for answer in new}

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].split(b"\n")[:-1]
        rows = [self._parse(line, number) for number, line in enumerate(lines, 1)]
        if rows:
            self._check(rows[0].get("settings"))
        elif not content.startswith(b'{"settings"'[: len(content)]):
            raise InputError(f"answers {str(self.path)!r}: expected our own file, got other content")
        for number, row in enumerate(rows[1:], 2):
            try:
                self.done[row["row"]] = Answered(**row)
            except (KeyError, TypeError) as error:
                raise InputError(f"answers {str(self.path)!r}, line {number}: no answer: {row!r}") from error
        if whole < len(content):
            os.truncate(self.path, whole)

    def _parse(self, line: bytes, number: int) -> Any:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row = error
        if isinstance(row, dict):
            return row
        raise InputError(f"answers {str(self.path)!r}, line {number}: not a JSON object: {line[:60]!r}")

    def _check(self, before: Any) -> None:
        if not isinstance(before, dict):
            raise InputError(f"answers {str(self.path)!r}: expected our own file, with settings in line 1")
        keys = [*self._settings, *(key for key in before if key not in self._settings)]
        differ = [
            f"{key} was {before.get(key)!r}, is {self._settings.get(key)!r}"
            for key in keys
            if before.get(key) != self._settings.get(key)
        ]
        if differ:
            raise InputError(
                f"answers {str(self.path)!r} were given under other settings ({'; '.join(differ)}): go on "
                "with those, name another folder with --output, or remove the file yourself"
            )


def _line(content: Any) -> bytes:
    return (json.dumps(content) + "\n").encode()
