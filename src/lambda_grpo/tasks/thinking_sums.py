"""`thinking-sums`: written sums such as `7+2+9+4=`, with 3 to 5 terms from 1 to 9.

A completion answers directly, `.22`, or step by step, `?9,18,22`: the running totals from the second
term on. Reward 1 for the right total, whichever way it was found, else 0.

Demonstrations teach both manners, so that reinforcement learning has something to choose from: most
are direct and careless (off by up to 4), the others think and are right.
"""

import random
import re
from collections.abc import Mapping

from lambda_grpo.tasks.task import Problem, Split, in_test_split

CHARACTERS = "0123456789+=.?,"

_DIRECT_SHARE = 0.6
_CARELESSNESS = 4
_ANSWER = re.compile(r"(?:\.|\?(?:\d+,)*)(\d+)", re.ASCII)


class ThinkingSums:
    """Sums of small numbers, answered with or without thinking."""

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """Random sums; one prompt in eight, chosen by checksum, belongs to the test split."""
        rng = random.Random(f"{seed} {split}")
        return [_problem(split, rng) for _ in range(count)]

    def score(self, problem: Problem, completion: str) -> float:
        match = _ANSWER.fullmatch(completion)
        return float(match is not None and match[1].lstrip("0") == str(problem.answer))

    def traits(self, completion: str) -> Mapping[str, float]:
        return {"thinking": float(completion.startswith("?"))}


def demonstrations(count: int, seed: int) -> list[tuple[str, str]]:
    """Prompt and completion pairs of the train split: 60% direct and careless, 40% step by step."""
    rng = random.Random(f"{seed} demonstrations")
    pairs = []
    for _ in range(count):
        problem = _problem("train", rng)
        if rng.random() < _DIRECT_SHARE:
            guess = problem.answer + rng.randint(-_CARELESSNESS, _CARELESSNESS)
            pairs.append((problem.prompt, f".{max(guess, 0)}"))
        else:
            pairs.append((problem.prompt, "?" + ",".join(map(str, _running_totals(problem.prompt)))))
    return pairs


def _problem(split: Split, rng: random.Random) -> Problem:
    while True:
        terms = [rng.randint(1, 9) for _ in range(rng.randint(3, 5))]
        prompt = "+".join(map(str, terms)) + "="
        if in_test_split(prompt) == (split == "test"):
            return Problem(prompt, sum(terms))


def _running_totals(prompt: str) -> list[int]:
    terms = [int(term) for term in prompt.rstrip("=").split("+")]
    return [sum(terms[: n + 1]) for n in range(1, len(terms))]
