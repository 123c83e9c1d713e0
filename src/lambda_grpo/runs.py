"""The run folder: what a training run leaves behind, each file written aside and renamed.

config.yaml          every setting, resolved
metrics.jsonl        one JSON object per logged step; names of validation begin with eval_
tokenizer/           the policy's tokenizer
rollouts/*.parquet   one row per completion: step, group, prompt, completion, token_ids, reward, advantage
checkpoint-*/        as transformers writes them; with validation, the best
model/               the trained policy; with validation, the best
results.json         the table before → after
curve.png            the curves of metrics.jsonl
report.html, .json   what `lambda-grpo report` makes of the rollouts

A comparison holds such a folder for each credit and, over all of them, config.yaml, compare.json, compare.png
and report.html.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lambda_grpo.errors import InputError


def create_run_folder(folder: Path) -> None:
    """Make the run folder.

    Raises:
        InputError: it already holds something, or cannot be made.
    """
    check_unused(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_folder(folder, error) from error


def check_unused(folder: Path) -> None:
    """Refuse a folder that already holds something, or is none."""
    try:
        present = sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise _no_folder(folder, error) from error
    if present:
        what = "another run" if "config.yaml" in present else "other files"
        raise InputError(
            f"output_dir {str(folder)!r} already holds {what} ({', '.join(present[:4])}"
            f"{', …' if len(present) > 4 else ''}), and nothing is overwritten: choose another output_dir, "
            "or remove it yourself"
        )


def _no_folder(folder: Path, error: OSError) -> InputError:
    return InputError(f"output_dir {str(folder)!r}: cannot be used as a folder: {error}")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to `path` once the block has ended without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    try:
        yield aside
        with aside.open("rb") as handle:
            os.fsync(handle.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    with written_whole(path) as aside:
        aside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def append_metrics(folder: Path, row: Mapping[str, Any]) -> None:
    """Add one line to metrics.jsonl."""
    with (folder / "metrics.jsonl").open("a") as handle:
        handle.write(json.dumps(dict(row)) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@dataclass(frozen=True)
class Rollouts:
    """The completions of one generation batch, B rows.

    Attributes:
        step: optimiser steps done when they were sampled.
        groups: (B,) int, the same number for completions of one prompt; numbered within the step.
        prompts, completions: B texts or lists of chat messages.
        token_ids: B lists of the completion's token ids.
        rewards, advantages: (B,) float.
    """

    step: int
    groups: NDArray[np.integer[Any]]
    prompts: Sequence[Any]
    completions: Sequence[Any]
    token_ids: Sequence[Sequence[int]]
    rewards: NDArray[np.floating[Any]]
    advantages: NDArray[np.floating[Any]]


def write_rollouts(folder: str | Path, rollouts: Rollouts, rank: int = 0) -> Path:
    """Write one generation batch to `folder/rollouts/`; chat messages are stored as JSON."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def text(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    table = pa.table(
        {
            "step": pa.array([rollouts.step] * len(rollouts.prompts), pa.int64()),
            "group": pa.array(rollouts.groups, pa.int64()),
            "prompt": pa.array([text(prompt) for prompt in rollouts.prompts], pa.string()),
            "completion": pa.array([text(completion) for completion in rollouts.completions], pa.string()),
            "token_ids": pa.array([list(ids) for ids in rollouts.token_ids], pa.list_(pa.int32())),
            "reward": pa.array(np.asarray(rollouts.rewards, np.float64)),
            "advantage": pa.array(np.asarray(rollouts.advantages, np.float64)),
        }
    )
    path = Path(folder) / "rollouts" / f"step-{rollouts.step:06d}-rank-{rank}.parquet"
    with written_whole(path) as aside:
        pq.write_table(table, aside, compression="zstd")
    return path
