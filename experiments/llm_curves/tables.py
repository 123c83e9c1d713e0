"""tables.md: pilots, what the paired runs come to, each run, and what λ changes in it, task by task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.estimates import short
from experiments.curves import curve_tables
from experiments.curves.curve_differences import Compared, ResultRows, measure
from experiments.llm_curves.what_lambda_changes import mean_of
from lambda_grpo.whole_files import written_whole

FILE = "tables.md"
_PART = 5  # steps, at both ends of a run


def write(piloted: ResultRows, rows: ResultRows, compared: Sequence[Compared], path: Path) -> None:
    """Write all tables. Intervals are 95% intervals of Student's t over seeds."""
    parts = ["# Tables of these runs", _INTRODUCTION]
    for task in dict.fromkeys(row["task"] for row in (*piloted, *rows)):
        of_task = [row for row in rows if row["task"] == task]
        parts.append(f"## {short(task)}")
        parts += _pilots([row for row in piloted if row["task"] == task])
        if of_task:
            here = [c for c in compared if c.task == task]
            parts += ["Paired runs:", curve_tables.means(here)]
            parts += ["Differences from `grpo`:", curve_tables.changes(here)]
            parts += ["Accuracy by step:", curve_tables.runs(of_task)]
            parts += [_LAMBDA, _what_lambda_changes(of_task)]
    with written_whole(path) as aside:
        aside.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


_INTRODUCTION = "The experiment writes this page. Intervals: 95%, Student's t over seeds."
_LAMBDA = (
    f"Share of tokens with |λ| > 1 and Σ|a|(1 − 1/|λ|) / Σ|a|, each in the first and the last {_PART} steps; "
    "tokens of a completion in the last ones; cosine of the credit's gradient with GRPO's on the first "
    "batch, and its norm divided by that of GRPO's:"
)


def _pilots(rows: ResultRows) -> list[str]:
    if not rows:
        return []
    rates = sorted({row["learning_rate"] for row in rows})
    lines = []
    for credit in dict.fromkeys(row["credit"] for row in rows):
        found = {row["learning_rate"]: measure(row) for row in rows if row["credit"] == credit}
        best = max(m["mean over steps"] for m in found.values())
        lines.append([f"`{credit}`", *(_pilot(found.get(rate), best) for rate in rates)])
    head = ["credit", *(f"{rate:g}" for rate in rates)]
    return ["Pilots, one run each: mean over steps (peak)", curve_tables.markdown(head, lines)]


def _pilot(measures: Mapping[str, float] | None, best: float) -> str:
    if measures is None:
        return "–"
    cell = f"{measures['mean over steps']:.3f} ({measures['peak']:.3f})"
    return f"**{cell}**" if measures["mean over steps"] == best else cell


def _what_lambda_changes(rows: ResultRows) -> str:
    lines = []
    for row in sorted(rows, key=lambda row: row["seed"]):
        ends = [
            f"{mean_of(row[name][part]):.3f}"
            for name in ("shared_tokens", "push_removed")
            for part in (slice(_PART), slice(-_PART, None))
        ]
        gradient = [_shown(row[name]) for name in ("cosine", "norm_ratio")]
        length = f"{mean_of(row['length'][-_PART:]):.0f}"
        lines.append([str(row["seed"]), f"`{row['credit']}`", *ends, length, *gradient])
    names = ("shared, first", "shared, last", "push removed, first", "push removed, last")
    return curve_tables.markdown(["seed", "credit", *names, "tokens", "cosine", "norm"], lines)


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}"
