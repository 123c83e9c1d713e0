"""What the commands show in a terminal: progress bars and the table before → after."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

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
    table = Table("", "before", "after")
    for title, name in (("sampled accuracy", "sampled_accuracy"), ("greedy accuracy", "greedy_accuracy")):
        table.add_row(title, str(getattr(before, name)), str(getattr(after, name)))
    for name, value in before.traits.items():
        table.add_row(f"{name} rate", f"{value:.3f}", f"{after.traits[name]:.3f}")
    table.add_row("mean length (tokens)", f"{before.mean_length:.1f}", f"{after.mean_length:.1f}")
    CONSOLE.print(table)
