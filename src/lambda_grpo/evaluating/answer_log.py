"""A model's answers to a benchmark, kept as they come in a file that a rerun goes on with."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lambda_grpo.errors import InputError
from lambda_grpo.resumable_jsonl import ResumableJsonl


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
        self.done: dict[int, Answered] = {}
        self._file = ResumableJsonl(path, settings, "answers")
        for number, line in enumerate(self._file.objects, 2):
            try:
                self.done[line["row"]] = Answered(**line)
            except (KeyError, TypeError) as error:
                raise InputError(f"{self._file.name}, line {number}: no answer: {line!r}") from error

    def add(self, answers: Iterable[Answered]) -> None:
        """Append answers; they are on the disk when this returns."""
        new = list(answers)
        self._file.add(map(asdict, new))
        self.done |= {answer.row: answer for answer in new}
