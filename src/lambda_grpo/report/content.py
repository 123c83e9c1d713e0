"""Rollouts → the content of the report: one JSON object with every number that the page shows.

The page embeds this object and draws from nothing else; `report.json` is the same object.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lambda_grpo import __version__
from lambda_grpo.errors import InputError, expect
from lambda_grpo.report.analysis import Analysis, Table, analyse
from lambda_grpo.report.compared_groups import groups_side_by_side
from lambda_grpo.report.comparison import comparison, in_turn, problems_of
from lambda_grpo.report.comparison_words import notes as comparison_notes
from lambda_grpo.report.forks import RunForks
from lambda_grpo.report.matching import MetPrompts
from lambda_grpo.report.run_records import own_tokeniser, read_records
from lambda_grpo.report.sample import Row, Sample, group_content
from lambda_grpo.report.side_by_side import SideBySide
from lambda_grpo.report.verdict import plural, verdict
from lambda_grpo.rollouts import Group, RolloutReader
from lambda_grpo.tree import ProcessTree
from lambda_grpo.whole_files import without_nan

_KIND = "lambda-grpo/report/"
SCHEMA = f"{_KIND}1"

BEGINNING = f'{{"schema":"{_KIND}'.encode()
"""How the JSON file of a report begins, of whatever version."""

_DIGITS = 9  # of each number


@dataclass(frozen=True)
class ReportOptions:
    """How a report is made.

    Attributes:
        tokenizer: folder or Hub id, for text without token ids, and to show ids as text; unless it is given,
            a run's ids are shown by the tokenizer in its own folder.
        skip_bad: go on without rows that cannot be used, and count them.
        group_size: completions per prompt, where a file does not tell.
        correct_at: a completion is right if its reward is at least this, where the file does not say.
        groups: how many groups are shown in full, at most.
        text_bytes: how many bytes they may take, at most.

    Raises:
        InputError: `groups` below 1; `correct_at` is not finite.
    """

    tokenizer: str | None = None
    skip_bad: bool = False
    group_size: int | None = None
    correct_at: float = 1.0
    groups: int = 60
    text_bytes: int = 8_000_000

    def __post_init__(self) -> None:
        expect(self.groups >= 1, "groups", self.groups, "at least 1")
        expect(math.isfinite(self.correct_at), "correct_at", self.correct_at, "a finite number")


def report_content(paths: Sequence[str | Path], options: ReportOptions) -> dict[str, Any]:
    """Read and measure rollouts in one pass.

    Raises:
        InputError: paths or rows that cannot be used, or no group at all.
    """
    reader = _reader(paths, options)
    sample, met = Sample(options.groups), MetPrompts()
    several = len(reader.runs) > 1

    def visit(group: Group, tree: ProcessTree, row: Row) -> None:
        sample.offer(group, tree, row)
        if several:
            met.note(group)
        if group.blocks:
            forks.setdefault(group.run, RunForks()).add(group, tree)

    origins: dict[str, dict[str, None]] = {}
    forks: dict[str, RunForks] = {}
    groups = _noting_tokens(reader, origins)
    analysis = analyse(groups, correct_at=options.correct_at, keep_nodes=False, visit=visit)
    left_out = reader.left_out
    if not len(analysis.groups["run"]):
        why = "; ".join(left_out.examples[:3]) or "the files hold no rows"
        raise InputError(f"no group of completions is left to report on: {why}")
    notes = [*reader.notes, *_mixed_notes(origins), *_unscored_notes(analysis)]
    notes += _empty_notes(reader, origins)
    chosen, compared = sample.chosen(), {}
    if len(origins) > 1:
        beside = _side_by_side(reader, analysis, met, origins)
        problems = problems_of(beside)
        in_full = in_turn(beside, problems)[: options.groups]
        compared = {"comparison": comparison(beside, problems, in_full)}
        notes += comparison_notes(beside, problems)
        again = groups_side_by_side(beside, problems[in_full], _reader(paths, options))
        chosen = [*again, *chosen]
    shown, cut = _fitting(chosen, reader, options)
    return {
        "schema": SCHEMA,
        "version": __version__,
        "correct_at": options.correct_at,
        "runs": _runs(reader, analysis, origins, forks),
        "steps": _columns(analysis.steps()),
        "left_out": asdict(left_out),
        "notes": notes,
        "groups_total": len(analysis.groups["run"]),
        "groups_cut": cut,
        "groups": shown,
        **compared,
    }


def as_json(content: Mapping[str, Any]) -> str:
    """Strict JSON in ASCII: nan is null, and lone surrogates stay escapes."""
    strict = without_nan(content, _DIGITS)
    return json.dumps(strict, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _noting_tokens(groups: Iterable[Group], origins: dict[str, dict[str, None]]) -> Iterable[Group]:
    for group in groups:
        origins.setdefault(group.run, {}).setdefault(group.tokens_from)
        yield group


def _reader(paths: Sequence[str | Path], options: ReportOptions) -> RolloutReader:
    return RolloutReader(
        paths, tokenizer=options.tokenizer, skip_bad=options.skip_bad, group_size=options.group_size
    )


def _side_by_side(
    reader: RolloutReader, analysis: Analysis, met: MetPrompts, origins: Mapping[str, Mapping[str, None]]
) -> SideBySide:
    runs = [run for run in reader.runs if run.name in origins]
    return SideBySide(
        names=[run.name for run in runs],
        groups=analysis.groups,
        met=met,
        records=[read_records(run) for run in runs],
        origins=[list(origins[run.name]) for run in runs],
    )


def _mixed_notes(origins: Mapping[str, Iterable[str]]) -> list[str]:
    """One sentence for each run whose groups have tokens of several kinds."""
    return [
        f"{run}: tokens come from {' in some groups, from '.join(kinds)} in others. Means over such trees "
        "mix two units."
        for run, kinds in origins.items()
        if len(list(kinds)) > 1
    ]


def _fitting(
    chosen: Sequence[tuple[Group, Row]], reader: RolloutReader, options: ReportOptions
) -> tuple[list[dict[str, Any]], int]:
    """The chosen groups, up to the budget of bytes, by run and step; and how many were cut."""
    tokenisers = {run.name: reader.tokeniser or own_tokeniser(run) for run in reader.runs}
    contents: list[dict[str, Any]] = []
    used = cut = 0
    distinct = {(group.run, group.step, group.name): (group, row) for group, row in chosen}
    for group, row in distinct.values():
        content = group_content(group, row, tokenisers[group.run])
        size = len(as_json(content))
        if used + size > options.text_bytes:
            cut += 1
            continue
        used += size
        contents.append(content)
    order = {run.name: place for place, run in enumerate(reader.runs)}
    return sorted(contents, key=lambda content: (order[content["run"]], content["step"])), cut


def _runs(
    reader: RolloutReader,
    analysis: Analysis,
    origins: Mapping[str, Mapping[str, None]],
    forks: Mapping[str, RunForks],
) -> list[dict[str, Any]]:
    """One object per run that has groups: its name, what was read, its means, its forks if it has any."""
    table = _columns(analysis.runs())
    flat, steps = analysis.groups["flat"], analysis.steps()
    runs = []
    for place, name in enumerate(table["run"]):
        mine = analysis.groups["run"] == name
        means = {column: values[place] for column, values in table.items() if column != "run"}
        files = next(len(run.files) for run in reader.runs if run.name == name)
        known = ~np.isnan(analysis.groups["best_pushed_down"][mine])
        runs.append(
            {
                "name": name,
                "files": files,
                "tokens_from": list(origins[name]),
                "flat_groups": int(flat[mine].sum()),
                "groups_with_a_best": int(known.sum()),
                "verdict": verdict(means, int(flat[mine].sum()), _of_run(steps, name)),
                "means": means,
                **({"branching": forks[name].content(means["groups"])} if name in forks else {}),
            }
        )
    return runs


def _unscored_notes(analysis: Analysis) -> list[str]:
    """What is to be said of each run some of whose completions have no reward."""
    table = analysis.runs()
    counts = zip(table["run"], table["completions"].tolist(), table["scored"].tolist(), strict=True)
    return [
        f"{run}: {completions - scored} of {plural(completions, 'completion')} "
        f"{'is' if completions - scored == 1 else 'are'} unscored: no reward function gave a score. Unscored "
        "completions are in the trees, and in no mean of rewards."
        for run, completions, scored in counts
        if scored < completions
    ]


def _empty_notes(reader: RolloutReader, origins: Mapping[str, Mapping[str, None]]) -> list[str]:
    """What is to be said of runs whose files hold no group that can be used."""
    return [
        f"{run.name}: none of its groups can be used, so this run is not shown."
        for run in reader.runs
        if run.name not in origins
    ]


def _of_run(table: Table, name: str) -> Table:
    return {column: values[table["run"] == name] for column, values in table.items()}


def _columns(table: Table) -> dict[str, list[Any]]:
    return {name: values.tolist() for name, values in table.items()}
