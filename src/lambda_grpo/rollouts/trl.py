"""What TRL's completion tables leave to be worked out: groups, and which columns are the reward.

A table (`log_completions=True`) has one row per completion: step, prompt, completion, one column per
reward function, columns of the user's own (`log_extra`), advantage; no group ids, no token ids.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from lambda_grpo.rollouts.values import BadRow, Float64, number, numbers

_OWN_COLUMNS = {"step", "prompt", "completion", "advantage"}


def prompt_runs(prompts: Sequence[str]) -> list[range]:
    """The runs of neighbouring rows with equal prompts."""
    runs = []
    begin = 0
    for _, members in groupby(prompts):
        end = begin + sum(1 for _ in members)
        runs.append(range(begin, end))
        begin = end
    return runs


def group_size(runs: Sequence[range]) -> int:
    """The size of every group, told from the runs of equal prompts; 0 if they have no common size.

    All groups of a table have one size, and one prompt may come twice in a row. So the size divides the
    length of every run; it is taken to be the greatest common divisor.

    >>> group_size([range(0, 8), range(8, 24), range(24, 32)])
    8
    >>> group_size([range(0, 8), range(8, 11)])
    0
    """
    size = math.gcd(*map(len, runs))
    return 0 if size == 1 < max(map(len, runs)) else size


def total_reward(columns: Mapping[str, Sequence[Any]], order: Sequence[str]) -> tuple[Float64, bool]:
    """The reward of each row of one group, and whether it explains the advantages.

    The reward functions are columns of floats; of columns that the user added after them, the longest
    row of columns is taken whose sum has the shape of TRL's advantages. If none has (weighted reward
    functions), the reward is the plain sum of all.

    Args:
        columns: one group's columns.
        order: the file's `float_columns`, at least one.

    Raises:
        BadRow: a row that no function scored, or an advantage that is not finite.
    """
    per_function = np.array([[number(value) for value in columns[name]] for name in order])
    missing = np.flatnonzero(np.isnan(per_function).all(axis=0))
    if len(missing):
        raise BadRow(int(missing[0]), f"reward is missing: {', '.join(order)} are all empty")
    advantages = numbers(columns["advantage"], "advantage")
    sums = np.cumsum(np.nan_to_num(per_function), axis=0)
    for count in range(len(order), 0, -1):
        if _same_shape(sums[count - 1], advantages):
            return sums[count - 1], True
    return sums[-1], False


def float_columns(columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """The columns besides TRL's own that hold floats and nothing else, in the file's order."""
    return [
        name
        for name, values in columns.items()
        if name not in _OWN_COLUMNS
        and all(value is None or isinstance(value, float) for value in values)
        and any(value is not None for value in values)
    ]


def _same_shape(rewards: Float64, advantages: Float64) -> bool:
    """Whether advantages are the rewards, shifted and scaled by a positive number."""
    r, a = rewards - rewards.mean(), advantages - advantages.mean()
    size_r, size_a = np.linalg.norm(r), np.linalg.norm(a)
    if size_r < 1e-6 or size_a < 1e-6:
        return bool(size_r < 1e-6 and size_a < 1e-3)
    return bool(r @ a > (1 - 1e-4) * size_r * size_a)
