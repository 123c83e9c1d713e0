"""A file that grows by one JSON object a line while something runs. A rerun goes on where the file ends.

The first line holds the settings that the others depend on, and nothing is added under other settings. A last
line that was cut off, which a killed run may leave, is dropped.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lambda_grpo.errors import InputError


class ResumableJsonl:
    """The objects in a file, after its settings; `add` appends.

    Attributes:
        objects: what the lines after the first hold, in their order. Line i + 2 holds objects[i].
        name: the file in messages: what it holds, and its path.

    Raises:
        InputError: the file was written under other settings, or is not one of ours.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], holds: str) -> None:
        self.path = path
        self.name = f"{holds} {str(path)!r}"
        self.objects: list[dict[str, Any]] = []
        self._settings = json.loads(json.dumps(settings))
        self._whole = 0  # bytes up to the end of the last whole line
        if path.exists():
            self._read(path.read_bytes())

    def add(self, objects: Iterable[Mapping[str, Any]]) -> None:
        """Append objects; they are on the disk when this returns."""
        new = [dict(each) for each in objects]
        lines = [_line(each) for each in new]
        if not self._whole:
            lines.insert(0, _line({"settings": self._settings}))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as handle:
            handle.truncate(self._whole)
            handle.writelines(lines)
            handle.flush()
            os.fsync(handle.fileno())
        self._whole += sum(map(len, lines))
        self.objects += new

    def _read(self, content: bytes) -> None:
        self._whole = content.rfind(b"\n") + 1
        lines = content[: self._whole].split(b"\n")[:-1]
        objects = [self._parse(line, number) for number, line in enumerate(lines, 1)]
        if objects:
            self._check(objects[0].get("settings"))
        elif not content.startswith(b'{"settings"'[: len(content)]):
            raise InputError(f"{self.name}: expected our own file, got other content")
        self.objects = objects[1:]

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            parsed = json.loads(line)
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict):
            return parsed
        raise InputError(f"{self.name}, line {number}: not a JSON object: {line[:60]!r}")

    def _check(self, before: Any) -> None:
        if not isinstance(before, dict):
            raise InputError(f"{self.name}: expected our own file, with settings in line 1")
        keys = [*self._settings, *(key for key in before if key not in self._settings)]
        differ = [
            f"{key} was {before.get(key)!r}, is {self._settings.get(key)!r}"
            for key in keys
            if before.get(key) != self._settings.get(key)
        ]
        if differ:
            raise InputError(
                f"{self.name} were made under other settings ({'; '.join(differ)}): go on with those, name "
                "another folder with --output, or remove the file yourself"
            )


def _line(content: Any) -> bytes:
    return (json.dumps(content) + "\n").encode()
