"""tables.md: pilots, what the paired runs come to, each run, and what λ changes in it, task by task."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.common.estimates import short
from experiments.curves import curve_tables
from experiments.curves.curve_differences import Compared, ResultRows, measure
from experiments.llm_curves.what_lambda_changes import mean_of
from lambda_grpo.whole_files import written_whole

FILE = "tables.md"
_PART = 5  # steps, at both ends of a run


def write(
    piloted: ResultRows,
    rates: Mapping[tuple[str, str], float],
    rows: ResultRows,
    compared: Sequence[Compared],
    path: Path,
) -> None:
    """Write all tables.

    Args:
        piloted: the runs that choose the rates.
        rates: what they chose, (task, credit) → rate.
        rows: the paired runs.
        compared: what these come to.
        path: of the page.
    """
    parts = ["# Tables of these runs", "The experiment writes this page."]
    for task in dict.fromkeys(row["task"] for row in (*piloted, *rows)):
        parts.append(f"## {short(task)}")
        parts += _pilots([row for row in piloted if row["task"] == task], rates)
        parts += _paired(
            [row for row in rows if row["task"] == task], [c for c in compared if c.task == task]
        )
    with written_whole(path) as aside:
        aside.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")


def _pilots(rows: ResultRows, rates: Mapping[tuple[str, str], float]) -> list[str]:
    if not rows:
        return []
    tried = sorted({row["learning_rate"] for row in rows})
    lines = []
    for credit in dict.fromkeys(row["credit"] for row in rows):
        cells = dict.fromkeys(tried, "–")
        for row in rows:
            if row["credit"] == credit:
                found = measure(row)
                cell = f"{found['mean over steps']:.3f} ({found['peak']:.3f})"
                chosen = rates.get((row["task"], credit)) == row["learning_rate"]
                cells[row["learning_rate"]] = f"**{cell}**" if chosen else cell
        lines.append([f"`{credit}`", *cells.values()])
    title = "Pilots, one run each: mean over steps (peak); bold is the rate that was chosen."
    return [title, curve_tables.markdown(["credit", *(f"{rate:g}" for rate in tried)], lines)]


def _paired(rows: ResultRows, compared: Sequence[Compared]) -> list[str]:
    if not rows:
        return []
    differences = curve_tables.changes(compared)
    return [
        "Paired runs. Intervals are 95% intervals of Student's t over seeds.",
        curve_tables.means(compared),
        _DIFFERENCES if differences else "",
        differences,
        "Accuracy by step:",
        curve_tables.runs(rows),
        _LAMBDA,
        _what_lambda_changes(rows),
    ]


_DIFFERENCES = (
    "Differences from `grpo`, and with how many pairs a test at 5% finds a difference of the given size four "
    "times in five, if more pairs spread as these do. Of five pairs the standard deviation is known to a "
    "factor of 0.6 to 2.9, so that number is rough."
)
_LAMBDA = (
    f"What λ changes, in the first and the last {_PART} steps: *shared*, the share of tokens with |λ| > 1; "
    "*removed*, Σ|a|(1 − 1/|λ|) / Σ|a|, which λ-GRPO takes off the push, or would take off another credit's. "
    "*cosine* and *norm*: of the credit's gradient on the first batch, with and by GRPO's. *tokens*: of a "
    f"completion, in the last {_PART} steps."
)


def _what_lambda_changes(rows: ResultRows) -> str:
    first, last = slice(_PART), slice(-_PART, None)
    lines = []
    for row in sorted(rows, key=lambda row: row["seed"]):
        parts = [
            mean_of(row[name][part]) for name in ("shared_tokens", "push_removed") for part in (first, last)
        ]
        values = [*parts, row["cosine"], row["norm_ratio"]]
        shown = ["–" if value is None or math.isnan(value) else f"{value:.3f}" for value in values]
        length = f"{mean_of(row['length'][last]):.0f}"
        lines.append([str(row["seed"]), f"`{row['credit']}`", *shown, length, row.get("device", "cpu")])
    names = ("shared, first", "shared, last", "removed, first", "removed, last", "cosine", "norm")
    return curve_tables.markdown(["seed", "credit", *names, "tokens", "device"], lines)
