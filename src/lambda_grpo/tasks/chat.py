"""A task asked as a chat: a system message, then each prompt as the user's."""

from collections.abc import Mapping

from lambda_grpo.errors import InputError
from lambda_grpo.tasks.task import Problem, Split, Task


class Chat:
    """`task` with its prompts, which are texts, as chat messages. Which split a problem is in stays.

    Raises:
        InputError: (from `problems`) a prompt that is chat messages already.
    """

    def __init__(self, task: Task, system: str) -> None:
        self._task, self._system = task, system

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        return [
            Problem(as_chat(problem.prompt, self._system), problem.answer)
            for problem in self._task.problems(split, count, seed)
        ]

    def score(self, problem: Problem, completion: str) -> float | None:
        return self._task.score(problem, completion)

    def traits(self, completion: str) -> Mapping[str, float]:
        return self._task.traits(completion)


def as_chat(prompt: object, system: str) -> list[dict[str, str]]:
    """The messages that ask a prompt; without a system message if `system` is empty.

    >>> as_chat("1+1?", "Be brief.")
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': '1+1?'}]
    """
    if not isinstance(prompt, str):
        raise InputError(
            f"system_prompt: the task's prompts are chat messages already ({str(prompt)[:60]}…): put the "
            "system message there"
        )
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": prompt}]
