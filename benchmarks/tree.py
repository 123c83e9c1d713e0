"""What the process tree costs: build it, and read λ-GRPO's weights off it, from token ids to (G, T) float32.

Completions branch off earlier ones at random, as sampled ones do: nine in ten copy a random stretch of an
earlier completion and go on alone; lengths vary by half. Medians of repeated runs on one core.

    python benchmarks/tree.py
"""

from functools import partial

import numpy as np
from timing import branching_group, median_seconds, weights_of

from lambda_grpo import ProcessTree

FLOOR = 3e-8  # seconds per token, for 70,000 tokens and more, from arrays
AUTHORS = "1.2e-07"  # the paper's figure for the weights alone, on another processor (an Intel i7)


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
