"""What the runs of llm_tree come to: by cell and rate, paired by seed; and their curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from experiments.binary_tree import tree_pictures
from experiments.binary_tree.ranking import BASELINES
from experiments.common.estimates import bounds
from lambda_grpo import console
from lambda_grpo.evaluating.intervals import Estimate, resampled_means, student

ResultRows = Sequence[Mapping[str, Any]]
MISSED_BELOW = 0.1  # a seed whose target is sampled less often at the end has missed it
MODE = "anti-exploitation"


def figures(rows: ResultRows) -> dict[str, float]:
    """Print and return what the runs come to, by `cell | lr rate | credit`.

    - the frequency of the target, with its interval; `| missed`, `| runs`: numbers of seeds
    - `| half at`: the mean step over the seeds that pass one half; `| never` counts the others
    - ` - baseline`, ` - baseline | half at`: over the seeds that both have, and in which both pass

    `all cells` takes the mean of a seed over the cells, for the seeds that have all of them.
    """
    found: dict[str, float] = {}
    baselines = (f"minus {name}" for name in BASELINES)
    shown = Table("cell", "rate", "credit", "seeds", "target", "half at step", *baselines)
    for (cell, rate), arms in _arms(rows).items():
        for variant, by_seed in arms.items():
            target, half = student(_values(by_seed, "target")), student(_values(by_seed, "half_at"))
            changes = {b: _changes(by_seed, arms[b]) for b in BASELINES if b in arms and b != variant}
            found |= _of_one(f"{cell} | lr {rate:g} | {variant}", by_seed, changes)
            against = [format(changes[b][""], "+.3f") if b in changes else "–" for b in BASELINES]
            line = [cell, f"{rate:g}", variant, str(len(by_seed)), str(target), format(half, ".0f")]
            shown.add_row(*map(escape, [*line, *against]))
    console.CONSOLE.print(shown)
    return {key: value for key, value in found.items() if not np.isnan(value)}


def _of_one(
    name: str, by_seed: Mapping[int, Mapping[str, Any]], changes: Mapping[str, Mapping[str, Estimate]]
) -> dict[str, float]:
    """The figures of one credit in one cell."""
    target, half = _values(by_seed, "target"), _values(by_seed, "half_at")
    found: dict[str, float] = {f"{name} | runs": len(target)}
    found |= bounds(name, student(target)) | bounds(f"{name} | half at", student(half))
    found |= {f"{name} | missed": int((target < MISSED_BELOW).sum())}
    found |= {f"{name} | never": int(np.isnan(half).sum())}
    for base, by_measure in changes.items():
        for measure, change in by_measure.items():
            found |= bounds(f"{name} - {base}{measure}", change)
    return found


def _arms(rows: ResultRows) -> dict[tuple[str, float], dict[str, dict[int, Mapping[str, Any]]]]:
    """(Cell, rate) → credit → seed → run; and the mean over the cells of each rate as a cell `all cells`."""
    found: dict[tuple[str, float], dict[str, dict[int, Mapping[str, Any]]]] = {}
    for row in rows:
        place = found.setdefault((row["cell"], row["learning_rate"]), {})
        place.setdefault(row["variant"], {})[row["seed"]] = row
    for rate in dict.fromkeys(rate for _, rate in found):
        cells = [arms for (_, r), arms in found.items() if r == rate]
        means = {variant: _mean_over(cells, variant) for variant in cells[0]}
        found["all cells", rate] = {variant: by_seed for variant, by_seed in means.items() if by_seed}
    return found


def _mean_over(
    cells: Sequence[Mapping[str, Mapping[int, Mapping[str, Any]]]], variant: str
) -> dict[int, Mapping[str, Any]]:
    """Seed → means over the cells, of the seeds that every cell has."""
    runs = [arms.get(variant, {}) for arms in cells]
    seeds = set.intersection(*(set(by_seed) for by_seed in runs))
    means: dict[int, Mapping[str, Any]] = {}
    for seed in sorted(seeds):
        half = [by_seed[seed]["half_at"] for by_seed in runs]
        means[seed] = {
            "target": float(np.mean([by_seed[seed]["target"] for by_seed in runs])),
            "half_at": None if None in half else float(np.mean(half)),
        }
    return means


def _values(by_seed: Mapping[int, Mapping[str, Any]], measure: str) -> np.ndarray:
    return np.array([row[measure] for row in by_seed.values()], np.float64)


def _changes(
    by_seed: Mapping[int, Mapping[str, Any]], base: Mapping[int, Mapping[str, Any]]
) -> dict[str, Estimate]:
    """Paired differences of the frequency and of the step that passes one half."""
    both = sorted(by_seed.keys() & base.keys())
    return {
        name: student(
            _values({s: by_seed[s] for s in both}, measure) - _values({s: base[s] for s in both}, measure)
        )
        for name, measure in (("", "target"), (" | half at", "half_at"))
    }


def draw(rows: ResultRows, folder: Path) -> None:
    """curves-RATE.png: the mean over the seeds there are, with its interval."""
    merged = []
    for (cell, rate), arms in _arms(rows).items():
        for variant, by_seed in arms.items():
            if cell == "all cells":
                continue
            curve = np.array([row["curve"] for row in by_seed.values()])
            low, high = np.quantile(resampled_means(curve), [0.025, 0.975], axis=0)
            bands = {"mean": curve.mean(axis=0), "low": low, "high": high}
            merged.append(
                {"cell": cell, "mode": MODE, "variant": variant, "learning_rate": rate, "curve": bands}
            )
    tree_pictures.draw_curves(merged, folder)
