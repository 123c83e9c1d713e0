"""Whole checkpoints, told from half-written and half-deleted ones by their last file.

transformers writes a checkpoint in place, file by file, and deletes old ones in the same manner. So a
checkpoint is sealed once all of it is on disk: `whole.json` holds the size of each file. A checkpoint is
whole if it has a seal and every file has its size; any other is never read.
"""

import json
import re
import shutil
from pathlib import Path

from lambda_grpo.whole_files import sync, write_json

SEAL = "whole.json"


def seal(folder: Path) -> None:
    """Bring all files of a checkpoint to the disk, then write its seal."""
    (folder / SEAL).unlink(missing_ok=True)
    paths = sorted(folder.rglob("*"))
    for path in [*paths, folder]:
        sync(path)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths if path.is_file()}
    write_json(folder / SEAL, {"files": sizes})
    sync(folder)
    sync(folder.parent)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint has its seal, and all that the seal names."""
    try:
        sizes = json.loads((folder / SEAL).read_text("utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def step_of(checkpoint: Path) -> int:
    """The optimiser steps done when `…/checkpoint-N` was written: N."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def find(folder: Path) -> list[Path]:
    """All checkpoints in a folder, whole or not, oldest first."""
    named = (path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))
    return sorted((path for path in named if path.is_dir()), key=step_of)


def last_whole(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder."""
    return next((path for path in reversed(find(folder)) if is_whole(path)), None)


def rotate(folder: Path, limit: int, keep: set[Path]) -> None:
    """Delete the oldest checkpoints but those in `keep`, until `limit` are left; 0 for all."""
    found = find(folder)
    spare = [path for path in found if path not in keep]
    for path in spare[: max(0, len(found) - max(limit, len(keep)))] if limit > 0 else []:
        shutil.rmtree(path)


def remove_broken(folder: Path) -> None:
    """Delete the checkpoints that are not whole."""
    for path in find(folder):
        if not is_whole(path):
            shutil.rmtree(path)
