"""Parts that the pictures of several experiments share."""

from collections.abc import Collection, Sequence
from typing import Any

from lambda_grpo.evaluating.intervals import student

TITLE = "Means over seeds; bands and bars: 95% intervals, Student's t"


def of_seeds(counts: Collection[int]) -> str:
    """How many seeds the arms of a panel have run.

    >>> of_seeds([5, 5]), of_seeds([3, 5]), of_seeds([1])
    ('5 seeds', '3 to 5 seeds', '1 seed')
    """
    low, high = min(counts), max(counts)
    return f"{low} to {high} seeds" if low < high else f"{high} seed{'s' if high != 1 else ''}"


def draw_curve(
    axes: Any, x: Sequence[float], runs: Sequence[Sequence[float]], colour: str, label: str, line: str = "-"
) -> None:
    """The mean of some curves, and a band for its interval; of a single curve there is no band.

    Args:
        axes: matplotlib's.
        x: where the points of all curves lie.
        runs: a curve per seed.
        colour, label, line: of the mean.
    """
    points = [student(column) for column in zip(*runs, strict=True)]
    axes.plot(x, [e.mean for e in points], line, color=colour, linewidth=1.8, label=label)
    if len(runs) > 1:
        low, high = [e.low for e in points], [e.high for e in points]
        axes.fill_between(x, low, high, color=colour, alpha=0.07, linewidth=0)


def draw_differences(axes: Any, arms: Sequence[tuple[str, str, Sequence[float]]]) -> None:
    """A line per arm: its differences seed by seed, and their mean with its interval.

    Args:
        axes: matplotlib's.
        arms: label, colour and differences of each.
    """
    axes.axvline(0, color="black", linewidth=1)
    for y, (_, colour, differences) in enumerate(arms):
        axes.plot(differences, [y + 0.18] * len(differences), "o", color=colour, alpha=0.35, markersize=4)
        e = student(differences)
        spread = [[e.mean - e.low], [e.high - e.mean]] if len(differences) > 1 else None
        axes.errorbar(e.mean, y, xerr=spread, color=colour, marker="o", markersize=6, linewidth=2)
    axes.set_yticks(range(len(arms)), [label for label, *_ in arms], fontsize=8)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=4)  # labels of a narrow panel would run into each other
