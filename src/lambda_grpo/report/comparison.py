"""Several runs side by side: how they ended, and who got what right that the other did not.

A problem is a prompt that at least two runs met (`matching`). It counts as right in a run by one of two
rules: most of its completions are right, or any of them is. A problem that is met at several steps counts for
each.
"""

import zlib
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lambda_grpo.report.analysis import Table
from lambda_grpo.report.comparison_words import answers
from lambda_grpo.report.final_figures import evaluation_figures, last_steps, training_figures
from lambda_grpo.report.matching import Int, match, told_apart
from lambda_grpo.report.run_records import VALIDATED
from lambda_grpo.report.side_by_side import SideBySide

_LISTED = 1000  # problems that are listed, at most
_PARTS = 10  # of the training, in which problems are counted
RULES = ("most", "any")


def problems_of(runs: SideBySide) -> Int:
    """(P, R) the groups of each problem, see `matching.match`."""
    return match(runs.run.tolist(), runs.groups["step"].tolist(), runs.met.keys)


def most_apart(runs: SideBySide, problems: Int) -> Int:
    """The problems' numbers, ordered by how far the shares of right completions are apart; later problems
    come first among equals."""
    share = np.where(problems >= 0, _share(runs)[problems], np.nan)
    known = ~np.isnan(share)
    apart = np.where(known, share, -1).max(axis=1) - np.where(known, share, 2).min(axis=1)
    apart[known.sum(axis=1) < 2] = -1
    return np.lexsort((-np.arange(len(problems)), -apart))


def in_turn(runs: SideBySide, problems: Int) -> Int:
    """The problems' numbers, in turn two of those that are furthest apart and one drawn by chance."""
    most = most_apart(runs, problems)
    drawn = np.argsort([zlib.crc32(_id(runs, rows).encode()) for rows in problems], kind="stable")
    place = np.concatenate([np.arange(len(most)) // 2, np.arange(len(drawn)) + 0.5])
    both = np.concatenate([most, drawn])[np.argsort(place, kind="stable")]
    return both[np.sort(np.unique(both, return_index=True)[1])]


def comparison(runs: SideBySide, problems: Int, shown: Int) -> dict[str, Any]:
    """Everything that is said of the runs side by side, ready for JSON; `shown` are the numbers of the
    problems that are shown in full."""
    members = [np.flatnonzero(runs.run == number) for number in range(len(runs.names))]
    steps = runs.groups["step"]
    window = last_steps([steps[rows] for rows in members])
    figures = {
        "after": evaluation_figures([record.after for record in runs.records]),
        "before": evaluation_figures([record.before for record in runs.records]),
        "training": training_figures(runs.groups, members, problems, window),
    }
    pairs = [_counts(runs, problems, a, b) for a, b in combinations(range(len(runs.names)), 2)]
    return {
        "answers": answers(runs.names, figures, pairs, window),
        "window": [int(window[0]), int(window[-1])] if len(window) else None,
        "figures": figures,
        "validation": _validation(runs),
        "problems_total": len(problems),
        "pairs": pairs,
        "problems": _listed(runs, problems, shown),
    }


def _share(runs: SideBySide) -> NDArray[np.float64]:
    """(N,) the share of right completions in each group; nan if none is scored."""
    return np.asarray(runs.groups["accuracy"], np.float64)


def _id(runs: SideBySide, rows: Int) -> str:
    """A name for a problem that stays the same when the page is made anew."""
    row = int(rows[rows >= 0][0])
    place = zlib.crc32(str(runs.groups["group"][row]).encode("utf-8", "surrogatepass"))
    return f"{runs.groups['step'][row]}-{runs.met.keys[row].hex()[:8]}-{place:08x}"


def _counts(runs: SideBySide, problems: Int, a: int, b: int) -> dict[str, Any]:
    """Of the problems that two runs met: in how many both sampled the same completions (`same`), how many
    have rewards in both (`scored`), how many of these were met at unequal steps; and by each rule, who got
    what right."""
    both = problems[(problems[:, a] >= 0) & (problems[:, b] >= 0)][:, [a, b]]
    checksums = np.array(runs.met.completions, np.int64)[both]
    scored = both[(runs.right[both] >= 0).all(axis=1)]
    right, of = runs.right[scored], runs.groups["scored"][scored]
    steps = runs.groups["step"][scored]
    return {
        "runs": [a, b],
        "met": len(both),
        "same": int((checksums[:, 0] == checksums[:, 1]).sum()),
        "scored": len(scored),
        "other_step": int((steps[:, 0] != steps[:, 1]).sum()),
        **{
            rule: _who(right > (of / 2 if rule == "most" else 0), steps.max(axis=1, initial=-(2**53)))
            for rule in RULES
        },
    }


def _who(right: NDArray[np.bool_], steps: Int) -> dict[str, Any]:
    """How many problems both, one or neither got right, over the training and in parts of it."""
    only = [right[:, 0] & ~right[:, 1], right[:, 1] & ~right[:, 0]]
    distinct = np.unique(steps)
    parts = []
    for mine in np.array_split(distinct, min(_PARTS, len(distinct)) or 1):
        if len(mine):
            inside = (steps >= mine[0]) & (steps <= mine[-1])
            counts = [int(one[inside].sum()) for one in only]
            parts.append(
                {"from": int(mine[0]), "to": int(mine[-1]), "problems": int(inside.sum()), "only": counts}
            )
    return {
        "both": int(right.all(axis=1).sum()),
        "only": [int(one.sum()) for one in only],
        "neither": int((~right.any(axis=1)).sum()),
        "parts": parts,
    }


def _listed(runs: SideBySide, problems: Int, shown: Int) -> list[dict[str, Any]]:
    """The problems that are furthest apart, and those that are shown in full, all in the former's order."""
    order = most_apart(runs, problems)
    wanted = {*order[:_LISTED].tolist(), *shown.tolist()}
    chosen = [problems[place] for place in order.tolist() if place in wanted]
    prompts = told_apart([runs.met.prompts[int(rows[rows >= 0][0])] for rows in chosen])
    table, right = runs.groups, runs.right
    return [
        {
            "id": _id(runs, rows),
            "prompt": prompt,
            "groups": [_met(table, right, row) if row >= 0 else None for row in rows.tolist()],
        }
        for rows, prompt in zip(chosen, prompts, strict=True)
    ]


def _met(table: Table, right: Int, row: int) -> Mapping[str, Any]:
    """One run's group of a problem, with the numbers that the list shows."""
    return {
        "step": int(table["step"][row]),
        "group": str(table["group"][row]),
        "right": max(0, int(right[row])),
        "scored": int(table["scored"][row]),
        "reward": float(table["reward"][row]),
    }


def _validation(runs: SideBySide) -> dict[str, list[Any]]:
    """One row per run and validation; a column per measure that any run has."""
    names = [name for name in VALIDATED if any(name in record.validation for record in runs.records)]
    columns: dict[str, list[Any]] = {name: [] for name in ("run", "step", *names)}
    for run, record in zip(runs.names, runs.records, strict=True):
        values = {name: dict(record.validation.get(name, ())) for name in names}
        for step in sorted({step for known in values.values() for step in known}):
            columns["run"].append(run)
            columns["step"].append(step)
            for name in names:
                columns[name].append(values[name].get(step))
    return columns
