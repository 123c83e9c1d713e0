"""`reasoning-gym:NAME`: every data set of the reasoning-gym package, scored by its own scorer.

The answer of a completion is the text in its last `<answer>…</answer>`, as the package's system prompts ask
for it, else the whole completion. Prompts are the package's questions and ask for no such tags. Scores are
the package's own, most of them with partial credit; a scorer that raises an error or exceeds its time
gives 0. Their flaws are the package's too: in version 0.1.25 complex_arithmetic gives 1 to `nan`, and
game_of_life_halting gives 1 to any text at all.

Puzzles are made and scored in a worker process: some generators iterate over sets and repeat only where
hashing is fixed, and some scorers compute what the completion says, which may hang. **A worker is no sandbox,
and in version 0.1.25 some scorers hand the completion to Python's `eval`, which may do harm**: binary_matrix,
n_queens, spiral_matrix, string_insertion, and through sympy countdown, intermediate_integration,
polynomial_multiplication, puzzle24, simple_integration.
"""

import itertools
import json
import pickle
import zlib
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from lambda_grpo.errors import InputError, missing_extra, unknown_name
from lambda_grpo.tasks.answers import final_answer
from lambda_grpo.tasks.task import Problem, Split, in_test_split
from lambda_grpo.tasks.worker import SECONDS, CallStopped, call

_PACKAGE = "reasoning_gym"
_CHUNK = 500  # puzzles per seed: the package's own default, and some data sets depend on it
_ONE_IN = 4  # making a puzzle may take a second, so a test split should not cost eight for each
_MOST_MISSES = 2000
_GENERATION_SECONDS = 120.0


class ReasoningGym:
    """One data set of reasoning-gym with its default settings, or your own as keywords.

    Raises:
        InputError: reasoning-gym is not installed, knows no such data set (with the nearest miss), or refuses
            the settings.
    """

    def __init__(self, name: str, **config: Any) -> None:
        known = data_sets()
        if name not in known:
            raise unknown_name("reasoning-gym data set", name, known)
        self.name = name
        self._config = json.dumps(config)
        self._entries: dict[tuple[int, int], bytes] = {}
        call(_check, name, self._config, importing=_PACKAGE)

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """Puzzles of the package in its own order; one prompt in four, chosen by checksum, is for testing.

        `Problem.answer` is `{"seed", "index", "answer"}`: which puzzle of the package it is, and its gold
        answer (None where any right answer will do). Prompts may repeat within a split.

        Raises:
            InputError: 2,000 puzzles in a row brought none for this split.
        """
        found: list[Problem] = []
        misses = 0
        for number in itertools.count():
            if len(found) == count:
                break
            chunk, index = divmod(number, _CHUNK)
            chunk_seed = zlib.crc32(f"{seed} {split} {chunk}".encode()) >> 1
            question, answer = self._make(chunk_seed, index)
            if in_test_split(question, _ONE_IN) == (split == "test"):
                found.append(Problem(question, {"seed": chunk_seed, "index": index, "answer": answer}))
                misses = 0
                continue
            del self._entries[chunk_seed, index]
            misses += 1
            if misses == _MOST_MISSES:
                raise InputError(
                    f"reasoning-gym:{self.name}: {misses} puzzles in a row have no prompt for the {split} "
                    f"split, {len(found)} of {count} were found: it has too few different prompts"
                )
        return found

    def score(self, problem: Problem, completion: str) -> float:
        """The package's score of the completion's answer; 0 if its scorer fails or takes over 5 seconds.

        Raises:
            InputError: the problem is not one of this data set, or of another version of the package.
        """
        key = problem.answer["seed"], problem.answer["index"]
        if key not in self._entries:
            question, _ = self._make(*key)
            if question != problem.prompt:
                raise InputError(
                    f"reasoning-gym:{self.name}: puzzle {key[1]} of seed {key[0]} is not the problem to "
                    f"score, {problem.prompt[:60]!r}: was it made with another version of reasoning-gym?"
                )
        entry, answer = self._entries[key], final_answer(completion)
        try:
            return float(
                call(_score, self.name, self._config, entry, answer, seconds=SECONDS, importing=_PACKAGE)
            )
        except CallStopped:
            return 0.0

    def traits(self, completion: str) -> Mapping[str, float]:
        return {}

    def _make(self, seed: int, index: int) -> tuple[str, Any]:
        """Question and gold answer of one puzzle; its entry is kept, for the scorer."""
        which = self.name, self._config, seed, index
        question, answer, entry = call(_entry, *which, seconds=_GENERATION_SECONDS, importing=_PACKAGE)
        self._entries[seed, index] = entry
        return question, answer


@lru_cache(maxsize=1)
def data_sets() -> dict[str, str]:
    """The names of reasoning-gym's data sets, each with the first line of its docstring and its kind.

    `composite` is left out: it is a mixture of others, to be configured.

    Raises:
        InputError: reasoning-gym is not installed.
    """
    if find_spec(_PACKAGE) is None:
        raise missing_extra("reasoning-gym", "tasks")
    found: dict[str, str] = call(_data_sets, importing=_PACKAGE)
    return found


# What follows runs in the worker.


def _data_sets() -> dict[str, str]:
    from reasoning_gym.factory import DATASETS

    found = {}
    for name, (cls, _) in sorted(DATASETS.items()):
        first_line = (cls.__doc__ or name.replace("_", " ")).strip().split("\n")[0].rstrip(" :.")
        kind = cls.__module__.split(".")[1]
        found[name] = f"{first_line} ({kind})".strip()
    del found["composite"]
    return found


@lru_cache(maxsize=8)
def _data_set(name: str, config: str, seed: int) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(name, **{"size": _CHUNK, "seed": seed, **json.loads(config)})


def _check(name: str, config: str) -> None:
    try:
        _data_set(name, config, 0)
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"reasoning-gym:{name}: it refuses the settings {config}: {error}") from error


def _entry(name: str, config: str, seed: int, index: int) -> tuple[str, Any, bytes]:
    entry = _data_set(name, config, seed)[index]
    return entry["question"], entry["answer"], pickle.dumps(entry)


def _score(name: str, config: str, entry: bytes, answer: str) -> float:
    data_set = _data_set(name, config, 0)  # a scorer needs the settings, not the seed
    try:
        return float(data_set.score_answer(answer, pickle.loads(entry)))
    except Exception:
        # Completions may hold anything, and scorers raise what their parsers raise.
        return 0.0
