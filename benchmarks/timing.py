"""Groups that branch as sampled ones do, medians of what takes little time, and memory at its peak.

Processor time is measured, not the clock's: other work on the machine counts less.
"""

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lambda_grpo import ProcessTree, credit

Result = TypeVar("Result")
TokenRows = list[NDArray[np.integer]]
VOCABULARY = 150_000


def branching_group(
    completions: int, length: int, seed: int | np.random.Generator = 0, dtype: type = np.int64
) -> TokenRows:
    """Random completions of `length` tokens, or up to half as many fewer.

    Nine in ten copy a random stretch of an earlier completion and go on alone.
    """
    rng = np.random.default_rng(seed)
    rows: TokenRows = []
    for _ in range(completions):
        own = rng.integers(0, VOCABULARY, int(length * rng.uniform(0.5, 1)), dtype)
        if rows and rng.random() < 0.9:
            trunk = rows[rng.integers(len(rows))]
            cut = int(rng.integers(0, min(len(trunk), len(own))))
            own[:cut] = trunk[:cut]
        rows.append(own)
    return rows


def weights_of(groups: Sequence[TokenRows], ids: Sequence[int], rewards: NDArray[np.float64]) -> None:
    """What is timed: the trees of all groups, and λ-GRPO's weights as (G, T) float32."""
    rows = [row for group in groups for row in group]
    for tree in ProcessTree.build_many(rows, ids):
        credit.lambda_grpo(tree, rewards)


def median_seconds(function: Callable[[], None], seconds: float = 0.5) -> float:
    """The median processor time of at least 7 calls, which take `seconds` in all."""
    function()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 7:
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return statistics.median(times)


def added_memory(run: Callable[[], Result]) -> tuple[Result, float]:
    """What `run` returns, and the MB that it adds to this process at its peak (Linux only)."""

    def resident(field: str) -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith(field))

    ctypes.CDLL(None).malloc_trim(0)  # give back what earlier runs left
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")
    before = resident("VmRSS")
    result = run()
    return result, (resident("VmHWM") - before) / 1024
