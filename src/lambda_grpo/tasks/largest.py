"""`largest`: "Which number is the largest: 18, 59, 44, 69?", four different numbers from 10 to 99.

For a model that chats. The last number of the answer counts: reward 1 if it is the largest, else 0.
"""

import random
from collections.abc import Mapping

from lambda_grpo.tasks.answers import last_number
from lambda_grpo.tasks.task import Problem, Split, in_test_split

_COUNT = 4
_NUMBERS = range(10, 100)


class Largest:
    """Which of four numbers is the largest, asked in a sentence."""

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """Random numbers; one prompt in eight, chosen by checksum, belongs to the test split."""
        rng = random.Random(f"{seed} {split}")
        return [_problem(split, rng) for _ in range(count)]

    def score(self, problem: Problem, completion: str) -> float:
        return float(last_number(completion) == str(problem.answer))

    def traits(self, completion: str) -> Mapping[str, float]:
        return {}


def _problem(split: Split, rng: random.Random) -> Problem:
    while True:
        numbers = rng.sample(_NUMBERS, _COUNT)
        prompt = f"Which number is the largest: {', '.join(map(str, numbers))}?"
        if in_test_split(prompt) == (split == "test"):
            return Problem(prompt, max(numbers))
