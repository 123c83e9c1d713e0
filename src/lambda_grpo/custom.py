"""What a user's own module or file holds, by name: `my_module:Name`, or `path/to/my_file.py:Name`."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from lambda_grpo.errors import InputError

_IN_A_FILE = {"task": ("class", "MyTask"), "credit": ("function", "my_credit")}
"""Kind → what of it a file holds, and how it may be called; for messages."""


def load_custom(kind: str, name: str) -> object:
    """What `name` points to; `kind` says in messages what it is to be, such as a task.

    Modules are also looked for in the current folder, which is added to the end of `sys.path`.

    Raises:
        InputError: no such module, file or name; a file alone. What the module itself raises is left alone.
    """
    what = f"{kind} {name!r}"
    if name.endswith(".py"):
        part, example = _IN_A_FILE[kind]
        raise InputError(f"{what}: name the {part} too: {name}:{example}")
    place, _, attribute = name.rpartition(":")
    module = _load_file(what, Path(place)) if place.endswith(".py") else _import(what, kind, place)
    if not hasattr(module, attribute):
        raise InputError(f"{what}: {place} has no {attribute!r}")
    return getattr(module, attribute)


def _import(what: str, kind: str, module: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there; it is one that it imports which is not
        raise InputError(
            f"{what}: there is no module {error.name!r} in the current folder or on the Python path; "
            f"expected my_module:my_{kind} or path/to/my_{kind}.py:my_{kind}"
        ) from error


def _load_file(what: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{what}: there is no file {str(path)!r}")
    spec = importlib.util.spec_from_file_location(f"own_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as an import would: dataclasses look there
    spec.loader.exec_module(module)
    return module
