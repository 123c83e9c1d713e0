"""A user's own task, named by a dotted path, `my_module:MyTask`, or a file, `path/to/my_task.py:MyTask`."""

from typing import TypeGuard

from lambda_grpo.custom import load_custom
from lambda_grpo.errors import InputError, LambdaGRPOError, failure
from lambda_grpo.tasks.task import Task

_METHODS = ("problems", "score", "traits")


def load_own(name: str) -> Task:
    """The task that `name` points to: a class or function, called without arguments, or a task itself.

    Raises:
        InputError: as `load_custom`; not a task. What the module itself raises is left alone.
        LambdaGRPOError: the class or function raised something; the message says where.
    """
    found = load_custom("task", name)
    task = found
    if callable(found) and (isinstance(found, type) or not _is_task(found)):
        try:
            task = found()
        except LambdaGRPOError:
            raise
        except Exception as error:
            raise LambdaGRPOError(
                f"task {name!r}: it is called without arguments, and failed: {failure(error)}"
            ) from error
    if not _is_task(task):
        missing = [method for method in _METHODS if not callable(getattr(task, method, None))]
        raise InputError(
            f"task {name!r}: expected the methods {', '.join(_METHODS)} (see lambda_grpo.tasks.Task), got an "
            f"object of type {type(task).__name__} without {', '.join(missing)}"
        )
    return task


def _is_task(candidate: object) -> TypeGuard[Task]:
    return all(callable(getattr(candidate, method, None)) for method in _METHODS)
