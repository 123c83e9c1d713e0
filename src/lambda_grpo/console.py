"""What the commands show in a terminal: progress bars and tables of evaluations."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from lambda_grpo.estimates import Estimate
from lambda_grpo.evaluation import Evaluation

CONSOLE = Console()


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


def before_after(before: Evaluation, after: Evaluation) -> None:
    """Print the table: accuracies with 95% intervals, the task's traits, mean length."""
    evaluations(["before", "after"], [before, after])


def evaluations(titles: Sequence[str], columns: Sequence[Evaluation]) -> None:
    """Print a table with one column per evaluation, all with equally many samples."""
    table = _table(*titles)
    first = columns[0]
    sampled = "sampled accuracy" if first.samples == 1 else f"sampled accuracy, avg@{first.samples}"
    table.add_row(sampled, *(str(e.sampled_accuracy) for e in columns))
    table.add_row("greedy accuracy", *(str(e.greedy_accuracy) for e in columns))
    for k in first.pass_at:
        table.add_row(f"pass@{k}", *(str(e.pass_at[k]) for e in columns))
    if any(e.mean_reward != e.sampled_accuracy for e in columns):  # a reward is neither 0 nor 1
        table.add_row("mean reward", *(str(e.mean_reward) for e in columns))
    for name in dict.fromkeys(name for e in columns for name in e.traits):
        table.add_row(
            f"{name} rate", *(f"{e.traits[name]:.3f}" if name in e.traits else "–" for e in columns)
        )
    table.add_row("mean length (tokens)", *(f"{e.mean_length:.1f}" for e in columns))
    if any(e.unscorable for e in columns):
        table.add_row("not scorable", *(f"{e.unscorable} of {e.answers}" for e in columns))
    CONSOLE.print(table)


def differences(title: str, estimates: Mapping[str, Estimate]) -> None:
    """Print the differences of two evaluations, by name of the measure."""
    table = _table(title)
    for name, estimate in estimates.items():
        if name == "mean_reward" and estimate == estimates["sampled_accuracy"]:
            continue
        table.add_row(name.replace("_", " "), format(estimate, "+.1f" if name == "mean_length" else "+.3f"))
    CONSOLE.print(table)


def _table(*titles: str) -> Table:
    return Table("", *(Column(title, overflow="fold") for title in titles))  # no name is cut short
