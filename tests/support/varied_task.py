"""Tasks for tests: two that reward even a policy that knows nothing, one with few problems, one with failures."""

import os
import random
import signal
import time

import numpy as np

from lambda_grpo.tasks import Problem, Split, ThinkingSums


class Varied(ThinkingSums):
    """Sums, of which only the variety of the answer counts: different characters, by ten."""

    def score(self, problem: Problem, completion: str) -> float:
        return len(set(completion)) / 10


class Noisy(Varied):
    """With luck in its rewards, drawn from the random numbers of Python and numpy that everything shares."""

    def score(self, problem: Problem, completion: str) -> float:
        return super().score(problem, completion) + 0.1 * random.random() + 0.1 * float(np.random.rand())


class Few(ThinkingSums):
    """Sums with four problems to a split."""

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        few = super().problems(split, 4, seed)
        return (few * count)[:count] if split == "train" else few[:count]


class Failing(Varied):
    """`Varied` that on the process FAIL_ON raises, dies, or waits for ever (FAIL) in call FAIL_AT of `score`."""

    calls = 0

    def score(self, problem: Problem, completion: str) -> float:
        self.calls += 1
        if os.environ.get("RANK") == os.environ.get("FAIL_ON") and self.calls == int(os.environ["FAIL_AT"]):
            if os.environ["FAIL"] == "raise":
                raise ValueError("no score to be had")
            if os.environ["FAIL"] == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            while True:
                time.sleep(0.1)
        return super().score(problem, completion)
