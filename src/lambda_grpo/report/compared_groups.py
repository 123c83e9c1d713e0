"""The groups of several runs that the page shows next to each other.

Which problems have most to show is known only when all runs have been read, so these groups are read again.
"""

from collections.abc import Iterable
from typing import Any

from lambda_grpo.report.matching import Int
from lambda_grpo.report.sample import Row, own_copy
from lambda_grpo.report.side_by_side import SideBySide
from lambda_grpo.rollouts import Group


def groups_side_by_side(runs: SideBySide, problems: Int, again: Iterable[Group]) -> list[tuple[Group, Row]]:
    """The groups of some problems, those of one problem one after another, with their numbers.

    Args:
        runs: what is known of the runs.
        problems: (P, R) those that are shown, see `matching.match`.
        again: the same groups as before; what is missing now is left out.
    """
    wanted: dict[Any, int] = {}
    for rows in problems:
        for row in rows[rows >= 0].tolist():
            wanted[tuple(runs.groups[name][row].item() for name in ("run", "step", "group"))] = row
    found: dict[int, Group] = {}
    for group in again if wanted else ():
        row = wanted.get((group.run, group.step, group.name))
        if row is not None:
            found[row] = own_copy(group)
            if len(found) == len(wanted):
                break
    return [(found[row], _row(runs, row)) for row in wanted.values() if row in found]


def _row(runs: SideBySide, row: int) -> Row:
    return {name: column[row].item() for name, column in runs.groups.items()}
