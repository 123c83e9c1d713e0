"""Files and folders that are whole or absent: they are written aside, brought to the disk, and renamed.

So a process that is killed, or a disk that is full, leaves nothing half-written under a file's own name.
"""

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lambda_grpo.errors import InputError

_NO_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES}
"""The errors of systems that cannot bring a folder to the disk: Windows, some network and FUSE mounts."""


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk.

    A folder is passed over if the system cannot bring folders to the disk.
    """
    try:
        handle = _opened(path)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NO_FOLDERS):
            raise


def _opened(path: Path) -> int:
    """A handle that may write, as Windows needs it; one that may not for folders and read-only files."""
    try:
        return os.open(path, os.O_RDWR)
    except (IsADirectoryError, PermissionError):
        return os.open(path, os.O_RDONLY)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to `path` once the block has ended without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    try:
        yield aside
        sync(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """The same for a folder; what was at `path` is replaced."""
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        yield aside
        for written in [*aside.rglob("*"), aside]:
            sync(written)
        shutil.rmtree(path, ignore_errors=True)
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def without_nan(content: Any, digits: int = 17) -> Any:
    """The same with null for what JSON lacks: NaN and infinity.

    Args:
        content: lists, mappings, texts and numbers, in one another.
        digits: of the numbers; 17 tell all of them apart.
    """
    if isinstance(content, float):
        return float(f"{content:.{digits}g}") if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: without_nan(value, digits) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value, digits) for value in content]
    return content


def write_json(path: Path, content: Any) -> None:
    """Strict JSON: what is no finite number becomes null."""
    with written_whole(path) as aside:
        text = json.dumps(without_nan(content), indent=2, ensure_ascii=False, allow_nan=False)
        aside.write_text(text + "\n", "utf-8")


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values; the keys stay in their order."""
    import yaml

    with written_whole(path) as aside:
        aside.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True), "utf-8")


def read_yaml(path: Path) -> Any:
    """The content of a YAML file in UTF-8.

    Raises:
        InputError: it cannot be read, or is no YAML; the message has the file, and the line if there is one.
    """
    import yaml

    try:
        return yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{str(path)!r}: cannot be read: {error}") from error
