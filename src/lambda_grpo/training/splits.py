"""Problems to train on, to validate on and to test on: no prompt is in two of them.

Test problems (the table before → after) and training problems are what the task gives. Validation problems
are drawn from what the table leaves of the test split, so that validation changes neither training nor table.
If the table leaves too few (a small fixed test set), they are held out of the training problems, with every
repetition of them. Two problems are the same if their prompts are, and validation has no prompt twice.
"""

import random
from collections.abc import Iterable, Set
from dataclasses import dataclass

from lambda_grpo.errors import InputError
from lambda_grpo.tasks import Problem, Task
from lambda_grpo.tasks.task import prompt_key


@dataclass(frozen=True)
class Sizes:
    """How many problems are wanted; `validation` may be 0."""

    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class Splits:
    """The problems of one run.

    Attributes:
        train: may repeat prompts; shorter than asked for by those held out.
        validation: distinct prompts.
        validation_from: `test` or `train`, the task's split they are from; empty without validation.
        test: as the task gives them.
    """

    train: list[Problem]
    validation: list[Problem]
    validation_from: str
    test: list[Problem]


def draw(task: Task, sizes: Sizes, seed: int) -> Splits:
    """Draw the problems of one run; the same for the same seed.

    Raises:
        InputError: there are not enough distinct prompts to hold some out.
    """
    train = task.problems("train", sizes.train, seed)
    test = task.problems("test", sizes.test, seed)
    if not sizes.validation:
        return Splits(train, [], "", test)
    taken = {prompt_key(problem.prompt) for problem in (*train, *test)}
    for factor in (2, 8):  # more than are wanted, as prompts may repeat
        pool = task.problems("test", sizes.test + factor * sizes.validation, seed)
        found = _distinct(pool, taken)[: sizes.validation]
        if len(found) == sizes.validation:
            return Splits(train, found, "test", test)
    return _held_out(train, test, sizes, seed)


def _held_out(train: list[Problem], test: list[Problem], sizes: Sizes, seed: int) -> Splits:
    candidates = _distinct(train, {prompt_key(problem.prompt) for problem in test})
    if len(candidates) < 2 * sizes.validation:
        raise InputError(
            f"validation_problems is {sizes.validation}, but the test split has not so many beside the "
            f"{len(test)} of the table, and holding them out would take more than half of the "
            f"{len(candidates)} distinct training prompts: lower validation_problems or eval_problems"
        )
    held = random.Random(f"{seed} validation").sample(candidates, sizes.validation)
    keys = {prompt_key(problem.prompt) for problem in held}
    kept = [problem for problem in train if prompt_key(problem.prompt) not in keys]
    return Splits(kept, held, "train", test)


def _distinct(problems: Iterable[Problem], taken: Set[str]) -> list[Problem]:
    """The first problem of each prompt that is not taken."""
    found: dict[str, Problem] = {}
    for problem in problems:
        found.setdefault(prompt_key(problem.prompt), problem)
    return [problem for key, problem in found.items() if key not in taken]
