"""runs.jsonl: one line per finished run, kept at once, so that an experiment that was stopped goes on.

The first line holds the settings that all runs share. Some of a run's keys, its identity, name it. In a
`Piece` of so many minutes no run begins after them; what is left is for the next piece.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lambda_grpo.resumable_jsonl import ResumableJsonl

FILE = "runs.jsonl"
Row = dict[str, Any]


@dataclass
class Piece:
    """A part of an experiment.

    Attributes:
        minutes: a run begins only before they are over.
        left: runs that were wanted and did not begin.
    """

    minutes: float
    left: int = 0

    def __post_init__(self) -> None:
        self._ends = time.monotonic() + 60 * self.minutes

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._ends


_PIECE: ContextVar[Piece] = ContextVar("piece")


@contextmanager
def piece_of(minutes: float) -> Iterator[Piece]:
    """What `complete` does in here ends with the run at hand when so many minutes are over."""
    piece = Piece(minutes)
    token = _PIECE.set(piece)
    try:
        yield piece
    finally:
        _PIECE.reset(token)


def complete(
    folder: Path,
    wanted: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    make: Callable[[int], Row],
    shown: Callable[[int, int], None],
) -> list[Row]:
    """One row for each identity wanted, in that order: read from the folder, or made now and kept.

    Rows of runs that the piece at hand leaves for later are missing.

    Args:
        folder: where runs.jsonl lies, or will.
        wanted: the identities, all with the same keys.
        settings: what all runs share.
        make: given the place of an identity in `wanted`, makes what else its row holds.
        shown: called as (runs done, runs wanted).

    Raises:
        InputError: the folder holds runs with other settings, or another file of that name.
    """
    kept = ResumableJsonl(folder / FILE, settings, "runs")
    piece = _PIECE.get(Piece(float("inf")))
    rows, left = [], 0
    for i, identity in enumerate(wanted):
        shown(i, len(wanted))
        row = next((row for row in kept.objects if row.items() >= identity.items()), None)
        if row is None and piece.over:
            left += 1
            continue
        if row is None:
            row = {**identity, **make(i)}
            kept.add([row])
        rows.append(row)
    piece.left += left
    if left and not kept.objects:
        kept.add([])  # the settings at least, by which the next piece knows the folder
    shown(len(wanted) - left, len(wanted))
    return rows
