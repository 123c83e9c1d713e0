"""What the process tree costs: build it, and read λ-GRPO's weights off it, from token ids to (G, T) float32.

Completions branch off earlier ones at random, as sampled ones do: nine in ten copy a random stretch of an
earlier completion and go on alone; lengths vary by half. Medians of repeated runs on one core.

    python benchmarks/tree.py
"""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from lambda_grpo import ProcessTree, credit

FLOOR = 3e-8  # seconds per token, for 70,000 tokens and more, from arrays
AUTHORS = "1.2e-07"  # the paper's figure for the weights alone, on another processor (an Intel i7)

Rows = list[np.ndarray]


def branching_group(completions: int, length: int, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    rows: Rows = []
    for _ in range(completions):
        own = rng.integers(0, 150_000, int(length * rng.uniform(0.5, 1)))
        if rows and rng.random() < 0.9:
            trunk = rows[rng.integers(len(rows))]
            cut = int(rng.integers(0, min(len(trunk), len(own))))
            own[:cut] = trunk[:cut]
        rows.append(own)
    return rows


def weights_of(groups: Sequence[Rows], ids: Sequence[int], rewards: np.ndarray) -> None:
    rows = [row for group in groups for row in group]
    for tree in ProcessTree.build_many(rows, ids):
        credit.lambda_grpo(tree, rewards)


def median_seconds(function: Callable[[], None]) -> float:
    function()
    times = []
    while sum(times) < 0.5 or len(times) < 7:
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    print(
        "build + λ weights                      tokens  unique      arrays (ms)   s/token    lists (ms)   s/token"
    )
    for groups, completions, length in (
        (1, 6, 1_000), (1, 16, 4_000), (1, 32, 4_000), (1, 64, 8_000), (1, 128, 8_000), (1, 128, 16_000), (32, 8, 10),
    ):  # fmt: skip
        arrays = [branching_group(completions, length, seed) for seed in range(groups)]
        lists = [[row.tolist() for row in group] for group in arrays]
        ids = [g for g in range(groups) for _ in range(completions)]
        rewards = np.arange(completions) % 2.0
        tokens = sum(len(row) for group in arrays for row in group)
        unique = sum(ProcessTree.build(group).unique_tokens for group in arrays)
        cells = [median_seconds(partial(weights_of, data, ids, rewards)) for data in (arrays, lists)]
        name = f"{groups} × ({completions}, {length:,})"
        print(
            f"{name:<34} {tokens:>10,} {tokens / unique:>6.2f}×"
            + "".join(f"  {1e3 * s:>11.3f}  {s / tokens:>9.1e}" for s in cells)
        )
    print(
        f"floor from arrays, at 70,000 tokens and more: {FLOOR:.0e}; 32 × (8, 10): 2 ms. The paper: {AUTHORS}"
    )


if __name__ == "__main__":
    main()
