"""The run folder: what a training run leaves behind, each file written aside and renamed.

.lock                held while a process trains here
config.yaml          what recipe and flags set: a recipe that repeats, or goes on with, the run
before.json          the evaluation before training
metrics.jsonl        one JSON object per logged step; names of validation begin with eval_
tokenizer/           the policy's tokenizer
machine_speed_*.json whether packing is right here and what it costs, for `tree_packing`; one file a rank
rollouts/*.parquet   one row per completion: step, group, prompt and completion, their ids, reward, advantage
checkpoint-*/        as transformers writes them, sealed (checkpoint_folders.py); with validation, the best
model/               the trained policy; with validation, the best
curve.png            the curves of metrics.jsonl
report.html, .json   what `lambda-grpo report` makes of the rollouts
results.json         the table before → after; written last: the run is finished

A comparison holds such a folder for each credit and, over all of them, config.yaml, compare.png, report.html
and, last, compare.json. start_or_resume.py says how a run goes on after a kill.
"""

import errno
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
        aside.write_text(text + "\n")


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


def append_metrics(folder: Path, row: Mapping[str, Any]) -> None:
    """Add one line to metrics.jsonl; what is no finite number becomes null."""
    with (folder / "metrics.jsonl").open("a") as handle:
        handle.write(json.dumps(without_nan(row)) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that was not written to its end is left out."""
    lines = (folder / "metrics.jsonl").read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


def sync_log(folder: Path) -> None:
    """Wait until metrics.jsonl and the names of the rollouts are on the disk."""
    for path in (folder / "metrics.jsonl", folder / "rollouts", folder):
        if path.exists():
            sync(path)


def truncate_metrics(folder: Path, step: int) -> None:
    """Keep the rows of metrics.jsonl up to and including `step`."""
    path = folder / "metrics.jsonl"
    if path.exists():
        kept = [json.dumps(row) + "\n" for row in read_metrics(folder) if row["step"] <= step]
        with written_whole(path) as aside:
            aside.write_text("".join(kept))


def _rollout_files(folder: Path) -> Iterator[Path]:
    return (folder / "rollouts").glob("step-*-rank-*.parquet")


def truncate_rollouts(folder: Path, step: int) -> None:
    """Delete what was sampled after `step` optimiser steps and later, and TRL's tables of later steps."""
    for path in _rollout_files(folder):
        if int(path.name.split("-")[1]) >= step:
            path.unlink()
    for path in (folder / "completions").glob("completions_*.parquet"):
        if int(path.stem.split("_")[1]) > step:
            path.unlink()


def set_rollouts_aside(folder: Path) -> Path | None:
    """Rename `rollouts`, if there are any in it, to the first of rollouts-1, rollouts-2, … that is free."""
    if not any(_rollout_files(folder)):
        return None
    names = (folder / f"rollouts-{number}" for number in count(1))
    return (folder / "rollouts").rename(next(path for path in names if not path.exists()))


@dataclass(frozen=True)
class Rollouts:
    """The completions of one generation batch, B rows.

    Attributes:
        step: optimiser steps done when they were sampled.
        batch: which generation batch of this step, from 0.
        groups: (B,) int, the same number for completions of one prompt; numbered within the step.
        prompts, completions: B texts or lists of chat messages.
        token_ids: B lists of the completion's token ids.
        prompt_ids: B lists of the prompt's, as the policy saw it; None if they are not known.
        blocks: B lists of the number of the block that sampled each token, by the group's `BranchPlan`; None
            if nothing forked.
        rewards, advantages: (B,) float; a reward is NaN if no function could score the completion.
    """

    step: int
    groups: NDArray[np.integer[Any]]
    prompts: Sequence[Any]
    completions: Sequence[Any]
    token_ids: Sequence[Sequence[int]]
    rewards: NDArray[np.floating[Any]]
    advantages: NDArray[np.floating[Any]]
    batch: int = 0
    prompt_ids: Sequence[Sequence[int]] | None = None
    blocks: Sequence[Sequence[int]] | None = None


def write_rollouts(folder: str | Path, rollouts: Rollouts, rank: int = 0) -> Path:
    """Write one generation batch to `folder/rollouts/`.

    Chat messages are stored as JSON, in which a placeholder stands for an image; a reward of NaN as null.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = pa.list_(pa.int32())
    table = pa.table(
        {
            "step": pa.array([rollouts.step] * len(rollouts.prompts), pa.int64()),
            "group": pa.array(rollouts.groups, pa.int64()),
            "prompt": pa.array([_text(prompt) for prompt in rollouts.prompts], pa.string()),
            "completion": pa.array([_text(completion) for completion in rollouts.completions], pa.string()),
            "token_ids": pa.array([list(row) for row in rollouts.token_ids], ids),
            "reward": pa.array(np.asarray(rollouts.rewards, np.float64), from_pandas=True),
            "advantage": pa.array(np.asarray(rollouts.advantages, np.float64)),
        }
    )
    for name, lists in (("prompt_ids", rollouts.prompt_ids), ("block", rollouts.blocks)):
        if lists is not None:
            table = table.append_column(name, pa.array([list(row) for row in lists], ids))
    again = f"-batch-{rollouts.batch}" if rollouts.batch else ""
    path = Path(folder) / "rollouts" / f"step-{rollouts.step:06d}-rank-{rank}{again}.parquet"
    with written_whole(path) as aside:
        pq.write_table(table, aside, compression="zstd")
    return path


def _text(value: Any) -> str:
    """A text as it is, chat messages as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_placeholder)


def _placeholder(value: Any) -> str:
    """What stands for an image: kind, size and checksum, by which different images stay different prompts."""
    if not hasattr(value, "tobytes"):
        return f"[{type(value).__name__}]"
    picture = hasattr(value, "mode")  # Pillow's; numpy's have a shape
    size = "×".join(map(str, value.size if picture else value.shape))
    return f"{'image' if picture else 'array'} {size}, {zlib.crc32(value.tobytes()):08x}"
