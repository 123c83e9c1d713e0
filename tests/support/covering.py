"""Covering arrays: few rows of settings in which every pair of values of any two settings occurs."""

import itertools
import random
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def pairs_of(row: Row) -> set[tuple[Any, ...]]:
    return {(a, row[a], b, row[b]) for a, b in itertools.combinations(row, 2)}


def all_pairs(values: dict[str, list[Any]], allowed: Callable[[Row], bool], tries: int = 200) -> list[Row]:
    """Rows of which each is `allowed`; a pair that fits into no allowed row is left out.

    Greedy: of some random rows around a pair not met yet, the one with most new pairs.
    """
    rng = random.Random(0)
    wanted = [
        (a, x, b, y) for a, b in itertools.combinations(values, 2) for x in values[a] for y in values[b]
    ]
    met: set[tuple[Any, ...]] = set()
    rows = []
    for a, x, b, y in wanted:
        if (a, x, b, y) in met:
            continue
        drawn = [{name: rng.choice(choices) for name, choices in values.items()} for _ in range(tries)]
        fitting = [row for row in ({**row, a: x, b: y} for row in drawn) if allowed(row)]
        if fitting:
            best = max(fitting, key=lambda row: len(pairs_of(row) - met))
            rows.append(best)
            met |= pairs_of(best)
    return rows
