"""The curves of several seeds as tables in Markdown: what they come to, and each run."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from experiments.curves.curve_differences import BASELINE, MEASURES, Compared, ResultRows

SIZES = {"mean over steps": 0.03, "peak": 0.05}  # differences that would matter to a user
_LEVEL, _POWER = 1.960, 0.842  # standard normal quantiles: a two-sided test at 5%, a power of 80%


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
    """A line per credit over all of its seeds; then one per credit for its paired differences from grpo."""
    lines = []
    for c in compared:
        cells = [format(c.estimates[name].mean, _format(name)) for name in MEASURES]
        lines.append([f"`{c.credit}`", _listed(c.seeds), *cells])
    for c in compared:
        if c.paired:
            cells = [format(c.differences[name], _format(name, "+")) for name in MEASURES]
            lines.append([f"`{c.credit}` − `{BASELINE}`", _listed(c.paired), *cells])
    return markdown(["credit", "seeds", *MEASURES], lines)


def changes(compared: Sequence[Compared]) -> str:
    """The paired differences from grpo one by one, and how many pairs could tell one that matters."""
    lines = []
    for c in compared:
        for name, size in SIZES.items():
            if len(c.paired) > 1:
                change = c.changes[name]
                each = ", ".join(f"{x:+.3f}" for x in change)
                enough = f"{size:g}: {pairs_to_tell(change, size)}"
                spread = f"{np.std(change, ddof=1):.3f}"
                lines.append([f"`{c.credit}`", name, _listed(c.paired), each, spread, enough])
    head = ["credit", "measure", "seeds", "differences", "standard deviation", "pairs that could tell"]
    return markdown(head, lines) if lines else ""


def pairs_to_tell(differences: NDArray[np.float64], size: float) -> int:
    """Pairs with which a paired t test at 5% finds a mean difference of `size` four times in five.

        (1.960 + 0.842)² σ² / size² + 1.960² / 2

    with σ the standard deviation of the differences. The second term is for Student's t (Guenther 1981).

    >>> pairs_to_tell(np.array([-0.1, 0.0, 0.1]), 0.05)
    34
    """
    spread = float(np.std(differences, ddof=1))
    return math.ceil(((_LEVEL + _POWER) * spread / size) ** 2 + _LEVEL**2 / 2)


def runs(rows: ResultRows) -> str:
    """The accuracy of each run by step, the credits of a seed one below the other."""
    lines = [
        [str(row["seed"]), f"`{row['credit']}`", *(f"{accuracy:.3f}" for accuracy in row["accuracy"])]
        for row in sorted(rows, key=lambda row: row["seed"])
    ]
    return markdown(["seed", "credit", *(f"step {step}" for step in rows[0]["steps"])], lines)


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _format(measure: str, sign: str = "") -> str:
    return f"{sign}.0f" if measure.startswith("step") else f"{sign}.3f"
