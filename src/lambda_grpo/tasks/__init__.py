"""Prompts with verifiable rewards, chosen by name. A task knows no trainer.

To add a task, write one file with a class that has the methods of `base.Task`, and name it in `TASKS`.
"""

from collections.abc import Callable

from lambda_grpo.errors import unknown_name
from lambda_grpo.tasks.base import Problem, Split, Task
from lambda_grpo.tasks.thinking_sums import ThinkingSums

__all__ = ["TASKS", "Problem", "Split", "Task", "ThinkingSums", "get_task"]

TASKS: dict[str, Callable[[], Task]] = {"thinking-sums": ThinkingSums}


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        InputError: an unknown task, with the nearest miss.
    """
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]()
