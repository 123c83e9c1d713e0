"""Rollout files of any trainer → `Group`s, one at a time.

    for group in RolloutReader(["runs/a", "runs/b"]): ...

The reader takes our run folders, TRL's completion tables, verl's rollout dumps, and plain JSON lines or
Parquet. It drops nothing silently: a row that cannot be used raises `InputError` with file and row, or is
counted. docs/rollouts.md is the schema of every format.
"""

from lambda_grpo.rollouts.blocks import Block
from lambda_grpo.rollouts.group import Group
from lambda_grpo.rollouts.reader import LeftOut, RolloutReader

__all__ = ["Block", "Group", "LeftOut", "RolloutReader"]
