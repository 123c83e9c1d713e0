"""`RolloutReader`: runs → files → rows → groups, with every problem raised or counted.

A bad row takes its whole group with it, because tree and advantages depend on every completion; if
the row does not tell its group (a line that is no JSON), the group goes on without it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lambda_grpo.errors import InputError
from lambda_grpo.rollouts import trl_tables
from lambda_grpo.rollouts.files import FileRows, Format, read_rows
from lambda_grpo.rollouts.group import FROM_IDS, Group, GroupRows, make_group
from lambda_grpo.rollouts.paths import FoundRun, find_runs
from lambda_grpo.rollouts.tokens import Tokeniser
from lambda_grpo.rollouts.values import BadRow, text

_MAX_MESSAGES = 20  # the most that are kept about what was left out, and the most notes


@dataclass
class LeftOut:
    """Counts of what `skip_bad` left out, and the first messages."""

    rows: int = 0
    groups: int = 0
    files: int = 0
    examples: list[str] = field(default_factory=list)


class RolloutReader:
    """The groups of some runs, in order of runs, files and rows. Iterate over it once.

    Args:
        paths: as `find_runs` takes them.
        tokenizer: folder or Hub id for text without token ids; without it, words (`tokens.pieces`).
        skip_bad: count what cannot be used in `left_out`, instead of raising.
        group_size: completions per prompt, if every group must have it; TRL's tables need it if the
            runs of equal prompts do not tell it.

    Attributes:
        runs: what was found, before anything is read.
        left_out, notes: complete once iteration has ended.

    Raises:
        InputError: at construction, a path or tokenizer that cannot be used; while iterating, a row that
            cannot be used.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        tokenizer: str | None = None,
        skip_bad: bool = False,
        group_size: int | None = None,
    ) -> None:
        if group_size is not None and group_size < 2:
            raise InputError(f"group_size is {group_size}, expected at least 2")
        self._paths = paths
        self.runs: list[FoundRun] = find_runs(paths)
        self.left_out = LeftOut()
        self.notes: list[str] = []
        self._fitted: set[str] = set()  # runs whose ids were compared with the tokenizer
        self.tokeniser = Tokeniser(tokenizer) if tokenizer else None
        self._skip_bad = skip_bad
        self._group_size = group_size

    def __iter__(self) -> Iterator[Group]:
        for run in self.runs:
            seen: set[tuple[int, str]] = set()
            for rows in self._rows(run):
                members = list(self._members(rows))
                rewards = self._reward_columns(run, rows, [places for _, places in members])
                for name, places in members:
                    yield from self._group(rows, GroupRows(run.name, name, places, rewards), seen)

    def _rows(self, run: FoundRun) -> Iterator[FileRows]:
        """The blocks of one run, less those in another format and those TRL logged twice."""
        first: tuple[Format, Path] | None = None
        previous: Any = None
        for file in run.files:
            for rows in read_rows(file, self._problem):
                first = first or (rows.format, file)
                if rows.format != first[0]:
                    self._problem(
                        file,
                        rows.numbers[0],
                        f"{rows.format.name}'s format, but {first[1].name} has {first[0].name}'s: formats "
                        "are not mixed within one run; name the files one by one",
                        len(rows.numbers),
                    )
                    continue
                if rows.format.name == "TRL":
                    content = [rows.columns[name] for name in ("prompt", "completion", "advantage")]
                    repeats, previous = content == previous, content
                    if repeats:
                        self._note(
                            f"{run.name}: some tables repeat the one before ({file.name} is one): TRL logs a "
                            "generation batch at each of its optimiser steps. Each batch is counted once."
                        )
                        continue
                yield rows

    def _members(self, rows: FileRows) -> Iterator[tuple[str, Sequence[int]]]:
        """The groups of a block: a name, and the places of its rows."""
        if rows.format.name == "TRL":
            yield from self._runs_of_prompts(rows)
            return
        by_prompt = "group" not in rows.columns  # verl's dumps: no ids, and rows in any order
        places: dict[str, list[int]] = {}
        for place, value in enumerate(rows.columns["prompt" if by_prompt else "group"]):
            places.setdefault(str(value), []).append(place)
        for number, (name, members) in enumerate(places.items()):
            yield (str(number) if by_prompt else name), members

    def _runs_of_prompts(self, rows: FileRows) -> Iterator[tuple[str, Sequence[int]]]:
        try:
            runs = trl_tables.prompt_runs(
                [text(i, p, "prompt") for i, p in enumerate(rows.columns["prompt"])]
            )
        except BadRow as bad:
            return self._problem(rows.file, rows.numbers[bad.index], str(bad), len(rows.numbers))
        size = self._group_size or trl_tables.group_size(runs)
        number = 0
        for run in runs:
            if not size or len(run) % size:
                lengths = ", ".join(map(str, sorted({len(other) for other in runs})[:8]))
                self._problem(
                    rows.file,
                    rows.numbers[run[0]],
                    f"{len(run)} neighbouring rows share a prompt, no multiple of "
                    + (f"the group size {size}" if size else "any group size above 1")
                    + f" (such runs have lengths {lengths}); name the size with --group_size",
                    len(run),
                )
                continue
            for begin in range(0, len(run), size):
                yield str(number), run[begin : begin + size]
                number += 1

    def _reward_columns(
        self, run: FoundRun, rows: FileRows, groups: Sequence[Sequence[int]]
    ) -> Sequence[str]:
        if rows.format.name != "TRL":
            return ()
        names, explained = trl_tables.reward_columns(rows.columns, groups)
        if names and not explained:
            self._note(
                f"{run.name}: the reward shown is the plain sum of {', '.join(names)}, which is not what "
                "TRL made its advantages of (weighted reward functions, or columns of your own)."
            )
        return names

    def _group(self, rows: FileRows, wanted: GroupRows, seen: set[tuple[int, str]]) -> Iterator[Group]:
        """The group of some rows, or nothing if one is bad and `skip_bad` is set."""
        name, places = wanted.name, wanted.places
        step = rows.columns["step"][places[0]] if "step" in rows.columns else 0
        try:
            if (step, name) in seen:
                raise BadRow(0, f"group {name!r} of step {step} came before: its rows must lie together")
            seen.add((step, name))
            if self._group_size not in (None, len(places)):
                raise BadRow(
                    0, f"group {name!r} of step {step} has {len(places)} rows, expected {self._group_size}"
                )
            group = make_group(rows, wanted, step, self.tokeniser)
            if "block" in rows.columns and not group.blocks:
                self._note_blocks(wanted.run, rows)
        except BadRow as bad:
            self._problem(rows.file, rows.numbers[places[bad.index]], str(bad), len(places), groups=1)
            return
        self._note_misfit(group)
        yield group

    def _note_misfit(self, group: Group) -> None:
        """Say once for each run that its ids are not the tokenizer's; the first group with texts tells."""
        if self.tokeniser is None or group.run in self._fitted or not any(group.texts):
            return
        self._fitted.add(group.run)
        if group.tokens_from == FROM_IDS and (unlike := self.tokeniser.misfit(group.texts, group.token_ids)):
            saved, decoded = unlike
            self._note(
                f"{group.run}: the tokenizer {self.tokeniser.source} does not fit the token ids: a "
                f"completion saved as {saved!r} decodes to {decoded!r}. Trees come from the ids and are "
                "right. Steps are shown by the completions as saved. Name the policy's own tokenizer."
            )

    def _note_blocks(self, run: str, rows: FileRows) -> None:
        """Say why forks are not shown, unless the column says nothing."""
        if any(isinstance(value, list | np.ndarray) and len(value) for value in rows.columns["block"]):
            self._note(
                f"{run}: forks are not shown for some groups: the column block numbers the policy's tokens, "
                "and these groups have no token_ids, or a row without blocks."
            )

    def _problem(self, file: Path, row: int | None, message: str, lost: int = 1, groups: int = 0) -> None:
        where = f"{file}: " if row is None else f"{file}, row {row}: "
        if not self._skip_bad:
            hint = ". --skip_bad goes on without it, and counts what is left out"
            raise InputError(f"{where}{message}{hint if self._leaves_any() else ''}")
        if row is None:
            self.left_out.files += 1
        else:
            self.left_out.rows += lost
            self.left_out.groups += groups
        if len(self.left_out.examples) < _MAX_MESSAGES:
            self.left_out.examples.append(where + message)

    def _leaves_any(self) -> bool:
        """Whether `skip_bad` would leave a group; reads from the start up to the first one."""
        again = RolloutReader(self._paths, skip_bad=True, group_size=self._group_size)
        return next(iter(again), None) is not None

    def _note(self, message: str) -> None:
        if message not in self.notes and len(self.notes) < _MAX_MESSAGES:
            self.notes.append(message)
