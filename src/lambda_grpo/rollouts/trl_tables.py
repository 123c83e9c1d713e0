"""What TRL's completion tables do not say: the groups, and which columns are the reward.

A table (`log_completions=True`) has one row per completion: step, prompt, completion, one column per
reward function, columns of the user's own (`log_extra`), advantage; no group ids, no token ids.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from lambda_grpo.rollouts.values import Float64, number, scores

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


def reward_columns(
    columns: Mapping[str, Sequence[Any]], groups: Sequence[Sequence[int]]
) -> tuple[list[str], bool]:
    """The columns whose sum is the reward, and whether that sum explains the advantages.

    Reward functions are columns of floats, and the user's own columns come after them. So the reward is the
    sum of the first k columns of floats, for the largest k whose sum has the shape of TRL's advantages in
    every group; rows that no function scored do not count. If no k fits (weighted reward functions), the
    result is all of them, and false.

    Args:
        columns: a table's columns.
        groups: the places of each group's rows.
    """
    names = [
        name
        for name, values in columns.items()
        if name not in _OWN_COLUMNS
        and all(value is None or isinstance(value, float) for value in values)
        and any(value is not None for value in values)
    ]
    advantages = np.array([number(value) for value in columns["advantage"]])
    values = np.array([[number(value) for value in columns[name]] for name in names])
    sums = np.cumsum(np.nan_to_num(values), axis=0)
    for count in range(len(names), 0, -1):
        scored = ~np.isnan(values[:count]).all(axis=0)
        told = [np.array(rows)[scored[list(rows)]] for rows in groups]
        if all(_same_shape(sums[count - 1, rows], advantages[rows]) for rows in told):
            return names[:count], True
    return names, False


def total_reward(columns: Mapping[str, Sequence[Any]], names: Sequence[str]) -> Float64:
    """The sum of the reward functions `names` for each row of one group; empty ones count 0, as in TRL.

    NaN for a row that no function scored.

    Raises:
        BadRow: a number that is not finite.
    """
    per_function = np.array([scores(columns[name], name) for name in names])
    total = np.nansum(per_function, axis=0)
    total[np.isnan(per_function).all(axis=0)] = np.nan
    return scores(total.tolist(), "reward")


def _same_shape(rewards: Float64, advantages: Float64) -> bool:
    """Whether advantages are the rewards, shifted and scaled by a positive number."""
    if len(rewards) == 0:
        return True
    r, a = rewards - rewards.mean(), advantages - advantages.mean()
    size_r, size_a = np.linalg.norm(r), np.linalg.norm(a)
    if size_r < 1e-6 or size_a < 1e-6:
        return bool(size_r < 1e-6 and size_a < 1e-3)
    return bool(r @ a > (1 - 1e-4) * size_r * size_a)
