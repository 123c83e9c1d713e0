"""Two tasks of written sums whose answers have a little over 40 tokens: one decides early, one late.

An answer holds the running totals of a sum from the second term on, behind a mark that says in which manner
they are found: `?` with care, `.` without, where a total is off by up to 3 now and then and those after it go
on from there. The reward is 1 if the answer has the right form and its last total is right, else 0. So a
policy learns to choose care, and above all the mark decides the reward.

`EarlyMark`   15 terms, prompt `7+2+9+…=`, answer `?9,18,…`: the first token decides.
`LateMark`    9 terms, prompt `7+2+9+…==`, answer `7+2+9+…=?9,18,…`: the first 18 tokens are a copy of the sum
              and decide nothing; the mark is token 19.
"""

import random
import re
from collections.abc import Mapping
from itertools import accumulate

from lambda_grpo.tasks import Problem
from lambda_grpo.tasks.task import Split, in_test_split

CARELESS_SHARE = 0.6  # of demonstrations
_ANSWER = re.compile(r"[.?]\d{1,3}(?:,\d{1,3})+", re.ASCII)
_MOST_OFF = 3


class EarlyMark:
    """Sums of 15 terms; the answer begins with its mark."""

    terms = 15
    ending = "="
    slips = 0.15  # per total of careless demonstrations

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """Random sums; one prompt in eight, chosen by checksum, belongs to the test split."""
        rng = random.Random(f"{seed} {split} {self.terms}")
        return [self.problem(split, rng) for _ in range(count)]

    def problem(self, split: Split, rng: random.Random) -> Problem:
        """One random sum of numbers from 1 to 9; its answer is the total."""
        while True:
            terms = [rng.randint(1, 9) for _ in range(self.terms)]
            prompt = "+".join(map(str, terms)) + self.ending
            if in_test_split(prompt) == (split == "test"):
                return Problem(prompt, sum(terms))

    def score(self, problem: Problem, completion: str) -> float:
        opening = self.opening(problem.prompt)
        marked = completion[len(opening) :]
        formed = completion.startswith(opening) and _ANSWER.fullmatch(marked)
        return float(bool(formed) and int(marked.rpartition(",")[2]) == problem.answer)

    def traits(self, completion: str) -> Mapping[str, float]:
        return {"care": float("?" in completion)}

    def opening(self, prompt: str) -> str:
        """What comes before the mark."""
        return ""

    def demonstration(self, rng: random.Random) -> tuple[str, str]:
        """A prompt of the train split, and a careful or a careless answer to it."""
        problem = self.problem("train", rng)
        first, *terms = map(int, problem.prompt.rstrip("=").split("+"))
        careless = rng.random() < CARELESS_SHARE
        if careless:
            terms = [term + self._slip(rng) for term in terms]
        totals = [max(total, 0) for total in accumulate(terms, initial=first)][1:]
        mark = "." if careless else "?"
        return problem.prompt, self.opening(problem.prompt) + mark + ",".join(map(str, totals))

    def _slip(self, rng: random.Random) -> int:
        return rng.choice((-1, 1)) * rng.randint(1, _MOST_OFF) if rng.random() < self.slips else 0


class LateMark(EarlyMark):
    """Sums of 9 terms; the answer repeats the sum before its mark."""

    terms = 9
    ending = "=="
    slips = 0.25

    def opening(self, prompt: str) -> str:
        return prompt.removesuffix("=")


TASKS = (EarlyMark, LateMark)
