"""The paper's five benchmarks: where each comes from, its columns, and how an answer is scored.

An answer is right (1) if math-verify finds it equal to the gold one, as in `maths.py`, or if both read the
same in their last `\\boxed{…}` but for spaces and the like; else it scores 0. The second rule serves gold
answers that math-verify cannot parse, which stay in: a benchmark has all its problems. Units in `\\text{…}`
do not count; of several answers all must be there, in any order. `answers.py` says what is the answer of a
completion. Tolerances (OlympiadBench's column `error`) are not used.

Not checked against the Hub: ids and splits are those that published evaluation code reads (open-rs's
lighteval tasks and others). `benchmarks/answers.py` checks the scoring on the files as published.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lambda_grpo.errors import InputError, unknown_name
from lambda_grpo.tasks.answers import last_boxed, stated_answer
from lambda_grpo.tasks.data_files import load_hub, read_jsonl
from lambda_grpo.tasks.maths import check_math_verify, gold_text, parses, same_answer
from lambda_grpo.tasks.task import Problem

_SPACES = re.compile(r"\\[!,;: ]|\\(?:left|right|displaystyle)\b|[\s$]|\\text\{\s*\}")


@dataclass(frozen=True)
class Source:
    """Where a benchmark is.

    Attributes:
        size: how many problems it should have; said if there are others.
        answer: columns of the gold answer; the first that is there.
    """

    hub: str
    split: str
    size: int
    problem: str
    answer: tuple[str, ...]


BENCHMARKS = {
    "aime24": Source("HuggingFaceH4/aime_2024", "train", 30, "problem", ("answer",)),
    "math500": Source("HuggingFaceH4/MATH-500", "test", 500, "problem", ("answer",)),
    "amc23": Source("knoveleng/AMC-23", "train", 40, "problem", ("answer",)),
    "minerva": Source("knoveleng/Minerva-Math", "train", 272, "problem", ("solution",)),
    "olympiadbench": Source("knoveleng/OlympiadBench", "train", 675, "question", ("answer", "final_answer")),
}


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's problems, in the order of its rows.

    Attributes:
        source: the Hub id and split, or the path.
        problems: prompts are the bare questions; answers are texts that hold a `\\boxed{…}`, mostly.
    """

    name: str
    source: str
    problems: list[Problem]

    def first(self, count: int | None) -> "Benchmark":
        """With its first `count` problems only; None for all."""
        return replace(self, problems=self.problems[:count])

    def score(self, problem: Problem, completion: str) -> float:
        """1 if the completion's answer is the gold one, else 0."""
        gold, stated = problem.answer, stated_answer(completion)
        return float(_plain(gold) == _plain(stated) != "" or same_answer(gold, completion))

    def unparsable(self) -> int:
        """How many gold answers math-verify cannot parse, so that only the same text is right."""
        return sum(not parses(problem.answer) for problem in self.problems)


def named(text: str) -> dict[str, str]:
    """Benchmarks by name, each with a path or an empty text.

    >>> named("aime24,math500:my/rows.jsonl")
    {'aime24': '', 'math500': 'my/rows.jsonl'}
    >>> list(named("all"))
    ['aime24', 'math500', 'amc23', 'minerva', 'olympiadbench']

    Raises:
        InputError: an unknown name, or one that comes twice.
    """
    if text == "all":
        return dict.fromkeys(BENCHMARKS, "")
    found: dict[str, str] = {}
    for part in text.split(","):
        name, _, path = part.strip().partition(":")
        if name not in BENCHMARKS:
            raise unknown_name("benchmark", name, [*BENCHMARKS, "all"])
        if name in found:
            raise InputError(f"benchmark {name!r} is named twice in {text!r}")
        found[name] = path
    return found


def load_benchmark(name: str, path: str = "") -> Benchmark:
    """A benchmark from the Hub, from a file with one JSON object per line, or a folder that `datasets` loads.

    Raises:
        InputError: as `check_math_verify`; it cannot be read, a column is missing, a row holds no question or
            no answer.
    """
    check_math_verify()
    source = BENCHMARKS[name]
    if path and not Path(path).is_dir():
        origin, rows = path, read_jsonl(path).parts["test"]
    else:
        origin = f"{path or source.hub}:{source.split}"
        rows = load_hub(origin).parts["test"]
    problems = [_problem(source, row, f"{name}, {origin}, row {i + 1}") for i, row in enumerate(rows)]
    return Benchmark(name, origin, problems)


def _problem(source: Source, row: Mapping[str, Any], place: str) -> Problem:
    answers = [column for column in source.answer if column in row]
    if source.problem not in row or not answers:
        raise InputError(
            f"{place}: expected the columns {source.problem!r} and {' or '.join(map(repr, source.answer))}, "
            f"those of {source.hub} on the Hub; it has {', '.join(row) or 'none'}"
        )
    question, gold = row[source.problem], _gold(row[answers[0]])
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"{place}, column {source.problem!r}: expected a text, got {str(question)[:60]!r}")
    if not gold:
        raise InputError(f"{place}, column {answers[0]!r}: expected an answer, got {row[answers[0]]!r}")
    return Problem(question, gold)


def _gold(answer: Any) -> str:
    """The gold answer as it is compared: of a worked solution its last `\\boxed{…}`; of a list all of it."""
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        answer = ", ".join(map(str, answer))
    return gold_text(answer)


def _plain(text: str) -> str:
    """The last `\\boxed{…}` without spaces and what only sets type; empty if there is none."""
    return _SPACES.sub("", last_boxed(text) or "").replace(r"\dfrac", r"\frac")
