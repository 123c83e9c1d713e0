"""The curves of several seeds as tables in Markdown: what they come to, and each run."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from experiments.curves.curve_differences import BASELINE, MEASURES, Compared, ResultRows

_SIZES = {"mean over steps": 0.03, "peak": 0.05}  # differences that are worth a trainer's while
_QUANTILES = 1.960 + 0.842  # of the standard normal: a two-sided test at 5%, a power of 80%


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table.

    >>> print(markdown(["credit", "peak"], [["grpo", "0.5"]]))
    | credit | peak |
    |---|---|
    | grpo | 0.5 |
    """
    first, *others = ("| " + " | ".join(cells) + " |" for cells in (head, *lines))
    return "\n".join([first, "|" + "---|" * len(head), *others])


def means(compared: Sequence[Compared]) -> str:
    """A line per credit; then a line per credit for its paired differences from grpo."""
    lines = []
    for c in compared:
        cells = [_number(name, c.estimates[name].mean) for name in MEASURES]
        lines.append([f"`{c.credit}`", str(c.seeds), *cells])
    for c in compared:
        if c.differences:
            cells = [format(c.differences[name], _format(name, "+")) for name in MEASURES]
            lines.append([f"`{c.credit}` − `{BASELINE}`", str(len(c.changes["peak"])), *cells])
    return markdown(["credit", "seeds", *MEASURES], lines)


def changes(compared: Sequence[Compared]) -> str:
    """The differences from grpo seed by seed, and how many seeds could tell one that matters."""
    lines = []
    for c in compared:
        for name, size in _SIZES.items():
            change = c.changes[name]
            if len(change) > 1:
                each = ", ".join(f"{x:+.3f}" for x in change)
                enough = f"{size:g}: {seeds_to_tell(change, size)} seeds"
                lines.append([f"`{c.credit}`", name, each, f"{np.std(change, ddof=1):.3f}", enough])
    return markdown(["credit", "measure", "seed by seed", "standard deviation", "to tell"], lines)


def seeds_to_tell(differences: NDArray[np.float64], size: float) -> int:
    """Pairs with which a test at 5% finds a mean difference of `size` four times in five.

    By the normal approximation: (2.8 σ / size)², where σ is the standard deviation of the differences.

    >>> seeds_to_tell(np.array([-0.1, 0.0, 0.1]), 0.05)
    32
    """
    return int(np.ceil((_QUANTILES * np.std(differences, ddof=1) / size) ** 2))


def runs(rows: ResultRows) -> str:
    """The accuracy of each run by step, the credits of a seed one below the other."""
    lines = [
        [str(row["seed"]), f"`{row['credit']}`", *(f"{accuracy:.3f}" for accuracy in row["accuracy"])]
        for row in sorted(rows, key=lambda row: row["seed"])
    ]
    return markdown(["seed", "credit", *(f"step {step}" for step in rows[0]["steps"])], lines)


def _number(measure: str, value: float) -> str:
    return format(value, _format(measure))


def _format(measure: str, sign: str = "") -> str:
    return f"{sign}.0f" if measure.startswith("step") else f"{sign}.3f"
