"""`jsonl:PATH` and `hub:ID`: prompts with gold answers, scored by math-verify.

The prompt is the first column present of prompt, problem, question: text, or a list of chat messages, handed
on as it is. The gold answer is the first of answer, solution: a number, a word, LaTeX with or without
delimiters, or a worked text with `\\boxed{…}` or, as in GSM8K, `#### …` at its end. `answers.py` finds
the answer of a completion.

Numbers below 0.001 must agree in three digits, because math-verify rounds to six decimals. From 10^15 on
twelve digits are enough, unless both are written as whole numbers: to math-verify 6.02 × 10^23 and the same
number written out differ.

A gold answer that math-verify cannot parse never becomes a problem: its row is skipped, counted and logged. A
completion that it cannot parse, or not in time, scores 0. Parsing and comparing run in a worker process under
one time limit, because math-verify's own works in the main thread only and cannot stop C code.
"""

import logging
import math
import random
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from typing import Any

from lambda_grpo.errors import InputError, missing_extra
from lambda_grpo.tasks.answers import gold_answer, stated_answer
from lambda_grpo.tasks.data_files import ProblemRows, pick_columns
from lambda_grpo.tasks.task import Problem, Split, in_test_split, prompt_key
from lambda_grpo.tasks.worker import SECONDS, CallStopped, call

_log = logging.getLogger(__name__)

_DIVIDED = ". A checksum of the prompt divides the rows, about one in eight to the test split: add more rows"


def check_math_verify() -> None:
    """Raise unless math-verify is there and its parser of LaTeX works.

    Raises:
        InputError: it is not installed, or antlr4-python3-runtime is too old for its parser (below 4.13):
            percentages and others are then no numbers, and right answers score 0.
    """
    if find_spec("math_verify") is None:
        raise missing_extra("math-verify", "tasks")
    found = version("antlr4-python3-runtime")
    if tuple(map(int, found.split(".")[:2])) < (4, 13):
        raise InputError(
            f"antlr4-python3-runtime: got {found}, with which math-verify scores right answers such as 5\\% "
            "as wrong; expected 4.13.2: pip install antlr4-python3-runtime==4.13.2. Hydra, and so verl, asks "
            "for 4.9: keep verl in an environment of its own"
        )


class Maths:
    """Problems from rows, scored by math-verify.

    Args:
        rows: where they come from: `read_jsonl(path)` or `load_hub(name)`.
        seconds: the time limit for one completion, and for one gold answer.

    Attributes:
        unparsable: places of the rows skipped so far because math-verify cannot parse their gold answer, with
            that answer. Rows are looked at when they are first needed.

    Raises:
        InputError: as `check_math_verify`; the columns are missing, or there is not one row.
    """

    def __init__(self, rows: ProblemRows, seconds: float = SECONDS) -> None:
        check_math_verify()
        self._rows = rows
        self._seconds = seconds
        self._columns: dict[Split, tuple[str, str]] = {}
        for split, part in rows.parts.items():
            if not len(part):
                raise InputError(f"{rows.source}: has no rows for the {split} split")
            self._columns[split] = pick_columns(rows.source, list(part[0]))
        self._gold_parses: dict[str, bool] = {}
        self.unparsable: dict[str, str] = {}

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """`count` rows of the split in random order, each once before any comes again.

        If the source has no test split, one prompt in eight, chosen by checksum, is for testing. If it has
        one, train rows whose prompt occurs there are left out. `Problem.answer` is the
        gold answer as text that math-verify parses.

        Raises:
            InputError: a row lacks a column or holds no prompt; the split has no usable row.
        """
        if split not in self._rows.parts:
            raise InputError(
                f"{self._rows.source}: has a test split only. To train on a part of it, name it: "
                f"{self._rows.source}:test is divided by checksum of the prompt"
            )
        rng = random.Random(f"{seed} {split}")
        skipped_before = len(self.unparsable)
        found = list(islice(self._usable(split, rng), count))
        self._report(len(self.unparsable) - skipped_before)
        if not found and count:
            none_fell_here = self._rows.divided and len(self.unparsable) == skipped_before
            raise InputError(
                f"{self._rows.source}: no usable problem for the {split} split among "
                f"{len(self._rows.parts[split])} rows; math-verify could not parse the gold answers of "
                f"{len(self.unparsable)}{_DIVIDED if none_fell_here else ''}"
            )
        if split == "test":
            return found
        once = list(found)
        while len(found) < count:
            rng.shuffle(once)
            found += once[: count - len(found)]
        return found

    def score(self, problem: Problem, completion: str) -> float:
        """1 if math-verify finds the completion's answer equal to the gold one, else 0."""
        return float(same_answer(problem.answer, completion, self._seconds))

    def traits(self, completion: str) -> Mapping[str, float]:
        return {}

    def _usable(self, split: Split, rng: random.Random) -> Iterator[Problem]:
        part = self._rows.parts[split]
        order = list(range(len(part)))
        rng.shuffle(order)
        for i in order:
            prompt, gold = self._read(split, i)
            if not self._belongs(prompt, split):
                continue
            if gold not in self._gold_parses:
                self._gold_parses[gold] = parses(gold, self._seconds)
            if self._gold_parses[gold]:
                yield Problem(prompt, gold)
            else:
                self.unparsable[self._rows.place(split, i)] = gold

    def _read(self, split: Split, i: int) -> tuple[Any, str]:
        row, place = self._rows.parts[split][i], self._rows.place(split, i)
        for column in self._columns[split]:
            if column not in row:
                raise InputError(f"{place}: no column {column!r}; it has {', '.join(row) or 'none'}")
        prompt, answer = (row[column] for column in self._columns[split])
        _check_prompt(prompt, f"{place}, column {self._columns[split][0]!r}")
        return prompt, gold_text(answer)

    def _belongs(self, prompt: Any, split: Split) -> bool:
        if self._rows.divided:
            return in_test_split(prompt) == (split == "test")
        return split == "test" or prompt_key(prompt) not in self._test_prompts

    @cached_property
    def _test_prompts(self) -> set[str]:
        part = self._rows.parts["test"]
        return {prompt_key(self._read("test", i)[0]) for i in range(len(part))}

    def _report(self, skipped: int) -> None:
        if skipped:
            place, gold = list(self.unparsable.items())[-skipped]
            _log.warning(
                "%s: skipped %d rows whose gold answer math-verify cannot parse, the first at %s: %r",
                self._rows.source, skipped, place, gold[:80],
            )  # fmt: skip


def same_answer(gold: str, completion: str, seconds: float = SECONDS) -> bool:
    """Whether math-verify finds a completion's answer equal to the gold one (`gold_text`), in time."""
    stated = stated_answer(completion)
    return stated != "" and _in_time(_equal, gold, stated, seconds=seconds)


def parses(gold: str, seconds: float = SECONDS) -> bool:
    """Whether math-verify finds an answer in a text, in time."""
    return _in_time(_parses, gold, seconds=seconds)


def _in_time(function: Any, *args: str, seconds: float) -> bool:
    try:
        return bool(call(function, *args, seconds=seconds, importing="math_verify"))
    except CallStopped:
        return False


def gold_text(answer: Any) -> str:
    """A gold answer as text in which math-verify finds what it should (`answers.gold_answer`).

    What is neither text nor a finite number gives an empty text, which does not parse.

    >>> print(gold_text(42), gold_text(0.00005), gold_text("20 + 22 = 42\\n#### 42"), repr(gold_text(None)))
    \\boxed{42} \\boxed{0.00005} \\boxed{42} ''
    """
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return ""
    if isinstance(answer, float) and not math.isfinite(answer):
        return ""
    return gold_answer(str(answer))


def _check_prompt(prompt: Any, place: str) -> None:
    if isinstance(prompt, str) and prompt.strip():
        return
    is_chat = isinstance(prompt, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in prompt
    )
    if not (is_chat and prompt):
        raise InputError(
            f'{place}: expected a text or a list of {{"role": …, "content": …}} with texts, neither of them '
            f"empty, got {str(prompt)[:60]!r}"
        )


# What follows runs in the worker. `None` switches math-verify's own timer off: the worker has one.


@lru_cache(maxsize=4096)
def _parse_gold(gold: str) -> Any:
    return _parse(gold)


def _parses(gold: str) -> bool:
    return bool(_parse_gold(gold))


def _equal(gold: str, completion: str) -> bool:
    from math_verify import verify

    right, found = _parse_gold(gold), _parse(completion)
    near = _near(right, found)
    if near is not None:
        return near
    return bool(verify(right, found, timeout_seconds=None))


def _near(right: Any, found: Any) -> bool | None:
    """Whether two numbers agree, if the gold one is too small or too large for math-verify; else None.

    math-verify takes 1.6e-19 and -9.1e-31 for equal. It reads 6.02 × 10^23 as a float, which differs from the
    same number as an integer.
    """
    try:
        gold, answer = float(right[0]), float(found[0])
    except (TypeError, ValueError, OverflowError, IndexError):  # no number
        return None
    if 0 < abs(gold) < 1e-3 and abs(gold - answer) > 1e-3 * abs(gold):
        return False
    if abs(gold) >= 1e15 and not (right[0].is_Integer and found[0].is_Integer):
        return abs(gold - answer) <= 1e-12 * abs(gold)
    return None


def _parse(text: str) -> Any:
    """What math-verify finds in a text, as sympy objects; an empty list if nothing."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    config = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    return parse(text, config, fallback_mode="no_fallback", parsing_timeout=None)
