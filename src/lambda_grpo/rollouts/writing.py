"""Completions of a training run → `rollouts/` in its folder, which `RolloutReader` reads.

One file holds one generation batch of one rank. What a run wrote can be cut back to a step, or set aside for
another run.
"""

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lambda_grpo.whole_files import written_whole


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
