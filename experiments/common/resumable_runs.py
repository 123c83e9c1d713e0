"""runs.jsonl: one line per finished run, kept at once, so that an experiment that was stopped goes on.

A run is named by some of its keys (its identity) and holds the settings that all runs share.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lambda_grpo.errors import InputError
from lambda_grpo.training import run_folder

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
        folder: where run_folder.jsonl lies, or will.
        wanted: the identities, all with the same keys.
        settings: what all runs share.
        make: given the place of an identity in `wanted`, makes what else its row holds.
        shown: called as (runs done, runs wanted).

    Raises:
        InputError: the folder holds runs with other settings.
    """
    kept = _read(folder / FILE, settings)
    rows = []
    for i, identity in enumerate(wanted):
        shown(i, len(wanted))
        row = next((row for row in kept if row.items() >= identity.items()), None)
        if row is None:
            row = {**identity, "settings": dict(settings), **make(i)}
            kept.append(row)
            with run_folder.written_whole(folder / FILE) as aside:
                aside.write_text("".join(json.dumps(row) + "\n" for row in kept))
        rows.append(row)
    shown(len(wanted), len(wanted))
    return rows


def _read(path: Path, settings: Mapping[str, Any]) -> list[Row]:
    if not path.exists():
        return []
    try:
        rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()]
        other = [
            (k, v, settings.get(k))
            for row in rows
            for k, v in row["settings"].items()
            if settings.get(k) != v
        ]
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{str(path)!r} does not hold runs of this experiment: {error!r}") from error
    if other:
        key, value, now = other[0]
        raise InputError(
            f"{str(path)!r} holds runs made with {key} {value!r}, not {now!r}: choose another --output, or "
            f"--{key} {value}"
        )
    return rows
