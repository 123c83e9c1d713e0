"""runs.jsonl: one line per finished run, kept at once, so that an experiment that was stopped goes on.

The first line holds the settings that all runs share. Some of a run's keys, its identity, name it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lambda_grpo.training.resumable_jsonl import ResumableJsonl

FILE = "runs.jsonl"
Row = dict[str, Any]


def complete(
    folder: Path,
    wanted: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    make: Callable[[int], Row],
    shown: Callable[[int, int], None],
) -> list[Row]:
    """One row for each identity wanted, in that order: read from the folder, or made now and kept.

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
    rows = []
    for i, identity in enumerate(wanted):
        shown(i, len(wanted))
        row = next((row for row in kept.objects if row.items() >= identity.items()), None)
        if row is None:
            row = {**identity, **make(i)}
            kept.add([row])
        rows.append(row)
    shown(len(wanted), len(wanted))
    return rows
