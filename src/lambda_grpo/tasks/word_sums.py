"""`word-sums`: word problems in three steps behind three worked examples, as plain text for a small model.

    Question: Ben has 9 apples. Then Ben buys 4 more and gives 2 away. How many apples does Ben have now?
    Answer: 9 + 4 = 13, 13 - 2 = 11. The answer is 11.

The prompt ends with `Answer:`, and the end of the line ends the answer. Reward 1 if the last number of that
line is right, else 0.

`word-sums:N` draws the first number from 3 to N, the others from 1 to N / 4; without N it is 20.
The larger N, the harder. SmolLM2-135M-Instruct, sampled at T = 0.75, gets 0.17 right with 20 (pass@4 0.46)
and 0.29 with 12 (pass@4 0.63): 32 problems, 8 samples each.
"""

import random
from collections.abc import Mapping

from lambda_grpo.errors import InputError
from lambda_grpo.tasks.answers import last_number
from lambda_grpo.tasks.task import Problem, Split, before_stop, in_test_split

LARGEST = 20
_SMALLEST = 4

NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Lena", "Tom")
THINGS = ("apples", "balls", "books", "cards", "coins", "eggs", "pens", "shells", "stamps", "stones")
_EXAMPLES = (("Sam", "pears", (9, 4, 2)), ("Mia", "beads", (12, 3, 4)), ("Leo", "keys", (5, 2, 1)))


class WordSums:
    """Word problems in three steps behind three worked examples; word-sums:N with numbers up to N.

    Raises:
        InputError: `largest` is no whole number from 4 on.
    """

    stop = ("\n",)
    raw_text = True

    def __init__(self, largest: int | str = LARGEST) -> None:
        if not str(largest).isascii() or not str(largest).isdigit() or int(largest) < _SMALLEST:
            raise InputError(
                f"word-sums: expected the largest number, a whole one from {_SMALLEST} on, such as "
                f"word-sums:{LARGEST}, got {largest!r}"
            )
        self.largest = int(largest)

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """Random problems; one prompt in eight, chosen by checksum, belongs to the test split."""
        rng = random.Random(f"{seed} {split} {self.largest}")
        return [self._problem(split, rng) for _ in range(count)]

    def score(self, problem: Problem, completion: str) -> float:
        return float(last_number(before_stop(completion, self.stop)) == str(problem.answer))

    def traits(self, completion: str) -> Mapping[str, float]:
        return {}

    def _problem(self, split: Split, rng: random.Random) -> Problem:
        while True:
            has = rng.randint(3, self.largest)
            buys, gives = (rng.randint(1, max(self.largest // 4, 2)) for _ in range(2))
            if gives >= has + buys:
                continue
            asked = question(rng.choice(NAMES), rng.choice(THINGS), (has, buys, gives))
            prompt = f"{_WORKED}{asked}\nAnswer:"
            if in_test_split(prompt) == (split == "test"):
                return Problem(prompt, has + buys - gives)


def question(name: str, things: str, numbers: tuple[int, int, int]) -> str:
    has, buys, gives = numbers
    return (
        f"Question: {name} has {has} {things}. Then {name} buys {buys} more and gives {gives} away. "
        f"How many {things} does {name} have now?"
    )


def _solution(numbers: tuple[int, int, int]) -> str:
    has, buys, gives = numbers
    both, left = has + buys, has + buys - gives
    return f"{has} + {buys} = {both}, {both} - {gives} = {left}. The answer is {left}."


_WORKED = "".join(
    f"{question(name, things, numbers)}\nAnswer: {_solution(numbers)}\n\n"
    for name, things, numbers in _EXAMPLES
)
