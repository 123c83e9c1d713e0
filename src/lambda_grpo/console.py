"""What the commands show in a terminal: progress bars and tables of evaluations."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from lambda_grpo.evaluating.evaluation import Evaluation
from lambda_grpo.evaluating.intervals import Estimate

CONSOLE = Console()


def embedded_policy() -> Path:
    """The folder of the embedded policy; where it is made now, with a progress bar."""
    from lambda_grpo import policy

    with progress("Pre-training the embedded policy (once)") as shown:
        return policy.embedded_policy(shown)


def policy_folder(model: str) -> str:
    """The folder or Hub id of a model; what is made or fetched once is so now, with a progress bar."""
    from lambda_grpo import policy

    if model == policy.EMBEDDED:
        return str(embedded_policy())
    if model == policy.SMOLLM2:
        with progress("Fetching SmolLM2-135M-Instruct (once)") as shown:
            return str(policy.smollm2_policy(shown))
    return policy.model_folder(model)


def run_starts(folder: Path, processes: int = 1) -> None:
    """Say where the run is, and how it would go on after a kill."""
    again = shlex.join(["lambda-grpo", "train", "--config", str(folder / "config.yaml")])
    how = f", started as {processes} processes again," if processes > 1 else ""
    told = f"{folder}: if this is stopped, `{again}`{how} goes on"
    CONSOLE.print(told, markup=False, soft_wrap=True)  # a line break would end a command that is copied


def run_goes_on(folder: Path, step: int) -> None:
    """Say where a run that was stopped goes on."""
    CONSOLE.print(f"{folder}: goes on from the checkpoint of step {step}", markup=False)


def run_finished(folder: Path) -> None:
    CONSOLE.print(f"{folder}: finished before: nothing was done (--overwrite starts over)", markup=False)


class Shown(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


@contextmanager
def progress(title: str) -> Iterator[Shown]:
    """A progress bar, shown from the first call on; a plain line at the end where there is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    bar = Progress(*columns, console=CONSOLE)
    task = bar.add_task(title, total=None, note="")

    def show(done: int, total: int, note: str = "") -> None:
        bar.start()
        bar.update(task, completed=done, total=total, note=note)

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


def table(columns: Mapping[str, Evaluation], more: Mapping[str, Mapping[str, str]], note: str = "") -> None:
    """Print evaluations side by side, all with equally many samples.

    Args:
        columns: title → evaluation.
        more: further rows, title → column → text.
        note: stands below.
    """
    rows: dict[str, dict[str, str]] = {}
    graded = any(e.mean_reward != e.sampled_accuracy for e in columns.values())  # not all 0 or 1
    for title, evaluation in columns.items():
        for name, cell in _cells(evaluation, graded):
            rows.setdefault(name, {})[title] = cell
    shown = _table(*columns)
    narrow = len(columns) > 2  # put intervals below their means
    for name, row in (rows | {key: dict(value) for key, value in more.items()}).items():
        shown.add_row(name, *(_cell(row.get(title, "–"), narrow) for title in columns))
    CONSOLE.print(shown)
    if note:
        CONSOLE.print(note, markup=False, highlight=False)


def asked(how: Mapping[str, str]) -> list[str]:
    """How each model was asked, name → words, as lines: one if all were asked alike.

    >>> asked({"a": "asked as a chat", "b": "asked as a chat"})
    ['Asked as a chat']
    >>> asked({"a": "asked as a chat", "b": "asked as plain text"})
    ['a: asked as a chat', 'b: asked as plain text']
    """
    if len(set(how.values())) == 1:
        words = next(iter(how.values()))
        return [words[:1].upper() + words[1:]]
    return [f"{name}: {words}" for name, words in how.items()]


def differences(title: str, estimates: Mapping[str, Estimate]) -> None:
    """Print the differences of two evaluations, by name of the measure."""
    shown = _table(title)
    for name, estimate in estimates.items():
        if name == "mean_reward" and estimate == estimates["sampled_accuracy"]:
            continue
        shown.add_row(name.replace("_", " "), format(estimate, "+.1f" if name == "mean_length" else "+.3f"))
    CONSOLE.print(shown)


def grid(titles: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """Print rows of cells below their titles."""
    shown = _table(*titles)
    for name, cells in rows.items():
        shown.add_row(name, *(_cell(cell, len(titles) > 2) for cell in cells))
    CONSOLE.print(shown)


def _cells(evaluation: Evaluation, graded: bool) -> Iterator[tuple[str, str]]:
    samples = evaluation.samples
    yield "sampled accuracy" + (f", avg@{samples}" if samples > 1 else ""), str(evaluation.sampled_accuracy)
    yield "greedy accuracy", str(evaluation.greedy_accuracy)
    for k, estimate in evaluation.pass_at.items():
        yield f"pass@{k}", str(estimate)
    if graded:
        yield "mean reward", str(evaluation.mean_reward)
    for name, value in evaluation.traits.items():
        yield f"{name} rate", f"{value:.3f}"
    yield "mean length (tokens)", f"{evaluation.mean_length:.1f}"
    if evaluation.unscorable:
        yield "not scorable", f"{evaluation.unscorable} of {evaluation.answers}"


def _cell(text: str, narrow: bool) -> str:
    return escape(text.replace(" [", "\n[").replace(", ", ",\u00a0") if narrow else text)


def _table(*titles: str) -> Table:
    return Table("", *(Column(title, overflow="fold") for title in titles))  # no name is cut short
