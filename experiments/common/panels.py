"""Parts that the pictures of several experiments share."""

from collections.abc import Sequence
from typing import Any

from lambda_grpo.evaluating.intervals import student


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


def title(seeds: int) -> str:
    """What a picture of curves over so many seeds shows."""
    if seeds == 1:
        return "One seed, so no intervals"
    return f"Means over {seeds} seeds; bands and bars: 95% intervals, Student's t"
