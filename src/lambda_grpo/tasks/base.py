"""What a task is: problems, their scoring, and what else is worth knowing of a completion."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Problem:
    """One prompt and what its task needs to score an answer.

    Attributes:
        prompt: text, or a list of chat messages (`{"role": ..., "content": ...}`).
        answer: the task's own data, serialisable as JSON.
    """

    prompt: Any
    answer: Any


class Task(Protocol):
    """A source of problems with verifiable rewards."""

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """`count` problems; the same for the same seed. No prompt is in both splits."""

    def score(self, problem: Problem, completion: str) -> float | None:
        """The reward of a completion; None if it cannot be scored."""

    def traits(self, completion: str) -> Mapping[str, float]:
        """Named numbers about a completion, reported as means; often none."""
