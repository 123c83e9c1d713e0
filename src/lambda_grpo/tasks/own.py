"""A user's own task, named by a dotted path, `my_module:MyTask`, or a file, `path/to/my_task.py:MyTask`."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from lambda_grpo.errors import InputError
from lambda_grpo.tasks.base import Task

_METHODS = ("problems", "score", "traits")


def load_own(name: str) -> Task:
    """The task that `name` points to: a class or function, called without arguments, or a task itself.

    Modules are also looked for in the current folder, which is added to the end of `sys.path`.

    Raises:
        InputError: no such module, file or name; not a task. What the module itself raises is left alone.
    """
    place, _, attribute = name.rpartition(":")
    module = _load_file(name, Path(place)) if place.endswith(".py") else _import(name, place)
    if not hasattr(module, attribute):
        raise InputError(f"task {name!r}: {place} has no {attribute!r}")
    found = getattr(module, attribute)
    task = found() if isinstance(found, type) or not _is_task(found) else found
    if not _is_task(task):
        missing = [method for method in _METHODS if not callable(getattr(task, method, None))]
        raise InputError(
            f"task {name!r}: expected the methods {', '.join(_METHODS)} (see lambda_grpo.tasks.Task), got an "
            f"object of type {type(task).__name__} without {', '.join(missing)}"
        )
    return task


def _is_task(candidate: object) -> bool:
    return all(callable(getattr(candidate, method, None)) for method in _METHODS)


def _import(name: str, module: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there; it is one that it imports which is not
        raise InputError(
            f"task {name!r}: there is no module {error.name!r} in the current folder or on the Python path; "
            "expected my_module:MyTask or path/to/my_task.py:MyTask"
        ) from error


def _load_file(name: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"task {name!r}: there is no file {str(path)!r}")
    spec = importlib.util.spec_from_file_location(f"own_task_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as an import would: dataclasses look there
    spec.loader.exec_module(module)
    return module
