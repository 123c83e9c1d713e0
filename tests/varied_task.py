"""Tasks for tests: two that reward even a policy that knows nothing, and one with few problems."""

import random

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
