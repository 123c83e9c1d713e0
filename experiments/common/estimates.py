"""Estimates as flat figures of results.json, and the names of tasks in them."""

import math

from lambda_grpo.evaluating.intervals import Estimate


def short(task: str) -> str:
    """A task's name without its module.

    >>> short("my_module:MyTask"), short("largest")
    ('MyTask', 'largest')
    """
    return task.rpartition(":")[2]


def bounds(name: str, e: Estimate) -> dict[str, float]:
    """`name`, `name | low` and `name | high`; without an interval where there is one seed only.

    >>> bounds("peak", Estimate(0.5, 0.25, 0.75))
    {'peak': 0.5, 'peak | low': 0.25, 'peak | high': 0.75}
    >>> bounds("peak", Estimate(0.5, -math.inf, math.inf))
    {'peak': 0.5}
    """
    values = (("", e.mean), (" | low", e.low), (" | high", e.high))
    return {f"{name}{part}": round(value, 4) for part, value in values if not math.isinf(value)}
