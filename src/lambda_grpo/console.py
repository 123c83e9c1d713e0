"""What the commands show in a terminal: progress bars and the table of results."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
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


def table(columns: Mapping[str, Evaluation], more: Mapping[str, Mapping[str, str]], note: str = "") -> None:
    """Print evaluations side by side: accuracies with 95% intervals, the task's traits, mean length.

    Args:
        columns: title → evaluation.
        more: further rows, title → column → text.
        note: stands below.
    """
    rows: dict[str, dict[str, str]] = {}
    for title, evaluation in columns.items():
        cells = {
            "sampled accuracy": str(evaluation.sampled_accuracy),
            "greedy accuracy": str(evaluation.greedy_accuracy),
            **{f"{name} rate": f"{value:.3f}" for name, value in evaluation.traits.items()},
            "mean length (tokens)": f"{evaluation.mean_length:.1f}",
        }
        for name, cell in cells.items():
            rows.setdefault(name, {})[title] = cell
    shown = Table("", *columns)
    narrow = len(columns) > 2  # put intervals below their means
    for name, row in (rows | {key: dict(value) for key, value in more.items()}).items():
        shown.add_row(name, *(_cell(row.get(title, ""), narrow) for title in columns))
    CONSOLE.print(shown)
    if note:
        CONSOLE.print(note, markup=False, highlight=False)


def _cell(text: str, narrow: bool) -> str:
    return escape(text.replace(" [", "\n[").replace(", ", ",\u00a0") if narrow else text)
