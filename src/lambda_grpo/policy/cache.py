"""The cache folder: models that are made or fetched once, each in a folder that is whole or absent."""

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from lambda_grpo.errors import LambdaGRPOError
from lambda_grpo.whole_files import folder_written_whole


def root() -> Path:
    """`$LAMBDA_GRPO_CACHE`, else `lambda-grpo` in the user's cache folder."""
    if "LAMBDA_GRPO_CACHE" in os.environ:
        return Path(os.environ["LAMBDA_GRPO_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lambda-grpo"


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, filled by `make` if it is not there yet.

    `make` fills a hidden folder beside, which is renamed when all is on the disk. What a killed process left
    is removed by the next one, and one process at a time makes a folder; the others wait for it.

    Raises:
        LambdaGRPOError: the cache cannot be written to, or its disk is full.
    """
    folder = root() / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{name}.lock")):
            if not folder.is_dir():
                with folder_written_whole(folder) as aside:
                    aside.mkdir()
                    make(aside)
    except (OSError, SafetensorError) as error:
        raise LambdaGRPOError(
            f"the cache {str(folder.parent)!r} cannot be written to, and {name} is not in it: {error}. Make "
            "room there, or name a folder on another disk in the environment variable LAMBDA_GRPO_CACHE"
        ) from error
    return folder
