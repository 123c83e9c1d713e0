"""How a run starts in its folder: anew, from its last whole checkpoint, or not at all.

The same command goes on with an unfinished run. A file lock (`filelock`) keeps a second process out, and the
system releases it however the first ends. A file that was being written when a process was killed is never
read: files are written aside and renamed (whole_files.py), checkpoints are sealed
(engines/trl/checkpoint_folders.py), and metrics and rollouts are cut back to the checkpoint.
"""

import errno
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from lambda_grpo.engines.trl import checkpoint_folders
from lambda_grpo.errors import InputError, LambdaGRPOError
from lambda_grpo.rollouts.writing import truncate_rollouts
from lambda_grpo.training import multi_rank, run_folder
from lambda_grpo.training.settings import known_names
from lambda_grpo.whole_files import read_yaml

_LOCK = ".lock"
_LOCK_IS_READABLE = sys.platform != "win32"  # Windows lets nobody read or write a locked file
_CONTENT = ("results.json", "compare.json", "compare.png", "curve.png", "report.html", "report.json",
            "before.json", "metrics.jsonl", "rollouts", "completions", "tokenizer", "model",
            "README.md")  # fmt: skip
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}


@dataclass(frozen=True)
class WantedRun:
    """A run folder and what it should hold.

    Attributes:
        folder: the run folder.
        settings: what recipe and flags set, as in config.yaml.
        overwrite: remove an earlier run that lies here.
        last: the name of the file that is written last.
    """

    folder: Path
    settings: Mapping[str, Any]
    overwrite: bool = False
    last: str = "results.json"


def finished(run: WantedRun) -> bool:
    """Whether there is nothing left to do."""
    return not run.overwrite and (run.folder / run.last).exists()


def check(run: WantedRun) -> None:
    """Refuse a folder that cannot become, or go on being, the folder of this run. Changes nothing.

    Raises:
        InputError: it is no folder, holds something else, or, without `overwrite`, a run with other settings.
    """
    try:
        present = sorted(path.name for path in run.folder.iterdir() if not _passing(path.name))
    except FileNotFoundError:
        return
    except OSError as error:
        raise _no_folder(run.folder, error) from error
    if not present:
        return
    where = f"output_dir {str(run.folder)!r}"
    if "config.yaml" not in present:
        shown = ", ".join(present[:4]) + (", …" if len(present) > 4 else "")
        raise InputError(
            f"{where} already holds other files ({shown}), and nothing is overwritten: choose another "
            "output_dir, or remove them yourself"
        )
    found = _settings_of_run(run)
    differences = _differences(found, run.settings)
    if differences and not run.overwrite:
        raise InputError(
            f"{where} already holds a run with other settings, so it cannot go on with these: "
            f"{'; '.join(differences)}. Give the same settings, choose another output_dir, or start over "
            "with --overwrite"
        )


@contextmanager
def opened(run: WantedRun) -> Iterator[Path | None]:
    """Lock the folder, cut what it holds back to the last whole checkpoint, and give that, if there is one.

    Of a job's processes the first does all this; the others wait and learn what came of it.

    Raises:
        InputError: as `check`, or another process trains here.
        LambdaGRPOError: within the block a file could not be written (disk full, folder read-only).
    """
    with ExitStack() as held:

        def open_it() -> Path | None:
            check(run)
            held.enter_context(_lock(run.folder))
            check(run)  # another process may have been here until now
            return _cut_back(run)

        try:
            yield multi_rank.on_first(open_it)
        except OSError as error:
            if error.errno not in _DISK:
                raise
            raise LambdaGRPOError(
                f"run {str(run.folder)!r} cannot go on: {error}. What its last checkpoint holds is good: "
                "make room, or let the folder be written to, and give the same command again"
            ) from error


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, whose file names this process; the system releases it when the process ends."""
    path = folder / _LOCK
    lock = FileLock(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        holder = path.read_text(errors="replace").strip()[:20] if _LOCK_IS_READABLE else ""
        raise InputError(
            f"output_dir {str(folder)!r} is in use by another process ({holder or 'unknown'}): wait until it "
            "has ended, or choose another output_dir"
        ) from None
    except OSError as error:
        raise _no_folder(folder, error) from error
    try:
        if _LOCK_IS_READABLE:
            path.write_text(f"{os.getpid()}\n")
        yield
    finally:
        lock.release()


def _cut_back(run: WantedRun) -> Path | None:
    folder = run.folder
    for path in folder.glob(".*.partial"):
        _remove(path)
    if run.overwrite:
        speeds = [*folder.glob("machine_speed_*.json")]
        content = [folder / name for name in _CONTENT] + speeds + checkpoint_folders.find(folder)
        for path in [*content, folder / "config.yaml"]:  # last what says that this is a run
            _remove(path)
    checkpoint_folders.remove_broken(folder)
    checkpoint = checkpoint_folders.last_whole(folder)
    if checkpoint:
        run_folder.truncate_metrics(folder, checkpoint_folders.step_of(checkpoint))
    else:
        (folder / "metrics.jsonl").unlink(missing_ok=True)
    truncate_rollouts(folder, checkpoint_folders.step_of(checkpoint) if checkpoint else 0)
    for path in (folder / "rollouts").glob(".*.partial"):
        path.unlink()
    return checkpoint


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _passing(name: str) -> bool:
    """Whether a killed process may have left this, and it says nothing."""
    return name == _LOCK or (name.startswith(".") and name.endswith(".partial"))


def _settings_of_run(run: WantedRun) -> dict[str, Any]:
    """What config.yaml holds, if it is that of a run; to be overwritten, of one that began in this folder.

    Raises:
        InputError: it is another file, such as that of another program, or a recipe.
    """
    found, known = read_yaml(run.folder / "config.yaml"), known_names()
    if not isinstance(found, dict):
        reason = "it is not a list of settings"
    elif unknown := [str(key) for key in found if key not in known]:
        reason = f"{unknown[0]!r} is no setting"
    elif "output_dir" not in found:
        reason = "it has no output_dir"
    elif run.overwrite and Path(str(found["output_dir"])).resolve().name != run.folder.resolve().name:
        reason = f"its output_dir is {found['output_dir']!r}"
    else:
        return found
    raise InputError(
        f"output_dir {str(run.folder)!r} already holds a config.yaml that is not of a run there ({reason}), "
        "and nothing is overwritten: choose another output_dir, or remove the files yourself"
    )


def _differences(found: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """The settings in which the run in the folder differs, `name: there → here`."""
    wanted = yaml.safe_load(yaml.safe_dump(dict(settings)))
    missing = object()
    return [
        f"{name}: {_shown(found.get(name, missing), missing)} → {_shown(wanted.get(name, missing), missing)}"
        for name in dict.fromkeys([*found, *wanted])
        if name != "output_dir" and found.get(name, missing) != wanted.get(name, missing)
    ]


def _shown(value: Any, missing: object) -> str:
    return "the default" if value is missing else repr(value)


def _no_folder(folder: Path, error: OSError) -> InputError:
    return InputError(f"output_dir {str(folder)!r}: cannot be used as a folder: {error}")
