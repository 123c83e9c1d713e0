"""A task of your own: write a word backwards.

A task is a class with three methods. Name it wherever a task is named, by its file or as a dotted path:

    lambda-grpo train --task examples/my_task.py:Backwards
    lambda-grpo train --task my_package.my_module:MyTask

Run this file to see two of its problems scored.
"""

import random
from collections.abc import Mapping

from lambda_grpo.tasks import Problem, Split
from lambda_grpo.tasks.task import in_test_split


class Backwards:
    """Words of 3 to 6 random letters, to be spelled backwards."""

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        rng = random.Random(f"{seed} {split}")
        found: list[Problem] = []
        while len(found) < count:
            word = "".join(rng.choices("abcdefgh", k=rng.randint(3, 6)))
            prompt = f"Spell backwards: {word}\n"
            if in_test_split(prompt) == (split == "test"):  # no prompt is in both splits
                found.append(Problem(prompt, answer=word[::-1]))
        return found

    def score(self, problem: Problem, completion: str) -> float:
        return float(completion.strip() == problem.answer)

    def traits(self, completion: str) -> Mapping[str, float]:
        return {"one_word": float(len(completion.split()) == 1)}


if __name__ == "__main__":
    task = Backwards()
    for problem in task.problems("test", count=2, seed=0):
        for completion in (problem.answer, "hello"):
            print(f"{problem.prompt.strip()} -> {completion}: {task.score(problem, completion)}")
