"""A completion that ended before its fork fills several rows; reward functions see it once."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

FirstRows = (
    NDArray[np.int64] | None
)  # (B,) for each row the row it repeats, or itself; None: none repeats one


def scored_once(function: Callable[..., Any], first_rows: Callable[[], FirstRows]) -> Callable[..., Any]:
    """`function`, called on rows that repeat no other; the others get their rewards.

    Args:
        function: a reward function as TRL calls it, by keyword, sync or async.
        first_rows: of the rows at hand.

    >>> scored_once(lambda completions: [len(c) for c in completions], lambda: np.array([0, 0, 2]))(
    ...     completions=["ab", "ab", "c"]
    ... )
    [2, 2, 1]
    """
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def later(**given: Any) -> Any:
            fewer, place = _without_repetitions(given, first_rows())
            rewards = await function(**fewer)
            return rewards if place is None else [rewards[i] for i in place]

        return later

    @functools.wraps(function)
    def now(**given: Any) -> Any:
        fewer, place = _without_repetitions(given, first_rows())
        rewards = function(**fewer)
        return rewards if place is None else [rewards[i] for i in place]

    return now


def _without_repetitions(
    given: dict[str, Any], first: FirstRows
) -> tuple[dict[str, Any], NDArray[np.int64] | None]:
    """The arguments without rows that repeat others, and for each row its place among those that are left."""
    if first is None:
        return given, None
    kept, place = np.unique(first, return_inverse=True)
    fewer = {
        name: [value[i] for i in kept] if isinstance(value, list) and len(value) == len(first) else value
        for name, value in given.items()
    }
    if "log_extra" in given:  # a column of TRL's table, which has all rows
        fewer["log_extra"] = lambda name, values: given["log_extra"](name, [values[i] for i in place])
    return fewer, place
