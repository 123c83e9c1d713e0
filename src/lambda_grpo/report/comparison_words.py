"""What is said of several runs side by side: the answers that the page opens with, and what to mind."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lambda_grpo.report.matching import Int
from lambda_grpo.report.side_by_side import SideBySide
from lambda_grpo.report.verdict import percent, plural

_SHOWN = 60  # characters of a run's name in a sentence


def answers(
    names: Sequence[str],
    figures: Mapping[str, Sequence[Mapping[str, Any]]],
    pairs: Sequence[Mapping[str, Any]],
    window: Int,
) -> list[str]:
    """Which run ended better, who got what right, and what the evaluations say, a sentence each."""
    names = [name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…" for name in names]
    said = []
    rewards = [figure for figure in figures["training"] if figure["measure"] in ("reward", "accuracy")]
    for run in range(1, len(names)):
        for figure in rewards[:1]:
            said.append(_ended(figure, names, run, _steps(window)))
        for pair in pairs:
            if pair["runs"] == [0, run]:
                said.append(_right(pair, names[0], names[run]))
    for figure in figures["after"][:2]:
        known = [(name, value) for name, value in zip(names, figure["runs"], strict=True) if value]
        values = ", ".join(f"{name} {_value(value, figure['percent'])}" for name, value in known)
        said.append(f"After training, on the test problems: {figure['title'].lower()} of {values}.")
    return [sentence for sentence in said if sentence]


def _steps(window: Int) -> str:
    if not len(window):
        return "In the last fifth of each run's steps"
    first, last = int(window[0]), int(window[-1])
    return f"In step {last}" if first == last else f"In steps {first} to {last}"


def _ended(figure: Mapping[str, Any], names: Sequence[str], run: int, when: str) -> str:
    """How a run ended beside the first one."""
    what = "mean reward" if figure["measure"] == "reward" else "accuracy"
    share, apart = figure["percent"], figure["differences"][run]
    ends = [(names[place], figure["runs"][place]) for place in (0, run)]
    for name, end in ends:
        if end is None:
            return f"{when} {name} has no rewards."
    values = " and ".join(f"{name}'s is {_value(end, share)}" for name, end in ends)
    if apart is None:
        both = f"{ends[0][0]} and {ends[1][0]}"
        return f"{when} {both} met no problem in common. Their own means: {what}, {values}."
    count = apart["problems"]
    on = f"{when}, on the same {'problem' if count == 1 else f'{count} problems'}"
    if apart["low"] is None:
        return f"{on}, too few for an interval: {what}, {values}."
    if apart["low"] > 0 or apart["high"] < 0:
        ahead, behind = (names[run], names[0]) if apart["mean"] > 0 else (names[0], names[run])
        return f"{on}, {ahead} is ahead of {behind}: its {what} is higher by {_points(_size(apart), share)}."
    exact = _points(apart, share, signed=True)
    return f"{on}, no run is clearly ahead: the {what} of {names[run]} minus that of {names[0]} is {exact}."


def _size(apart: Mapping[str, float]) -> Mapping[str, float]:
    """A difference that is clearly not zero, without its sign."""
    if apart["mean"] > 0:
        return apart
    return {"mean": -apart["mean"], "low": -apart["high"], "high": -apart["low"]}


def _value(value: Mapping[str, Any], share: bool) -> str:
    def one(x: float) -> str:
        return ("−" if x < 0 else "") + (percent(abs(x)) if share else f"{abs(x):.3f}")

    if value.get("low") is None:
        return one(value["mean"])
    return f"{one(value['mean'])} [{one(value['low'])}, {one(value['high'])}]"


def _points(apart: Mapping[str, float], share: bool, signed: bool = False) -> str:
    """A difference with its interval; of shares in percentage points."""

    def one(x: float) -> str:
        sign = "−" if x < 0 else "+" if signed and x > 0 else ""
        return sign + (f"{100 * abs(x):.1f}" if share else f"{abs(x):.3f}")

    unit = " points" if share else ""
    return f"{one(apart['mean'])} [{one(apart['low'])}, {one(apart['high'])}]{unit}"


def _right(pair: Mapping[str, Any], a: str, b: str) -> str:
    """Who got what right, by most completions of a problem."""
    if not pair["scored"]:
        return ""
    most = pair["most"]
    return (
        f"Of the {plural(pair['scored'], 'problem')} that both met in training, "
        f"{a} alone got {most['only'][0]} right, {b} alone {most['only'][1]}, both {most['both']}, "
        f"neither {most['neither']}. A problem counts as right if most of its completions are."
    )


def notes(runs: SideBySide, problems: Int) -> list[str]:
    """What the reader of a comparison should mind."""
    return [
        *(note for record in runs.records for note in record.notes),
        *_other_tasks(runs),
        *_without_rewards(runs),
        *_nothing_right(runs),
        *_shared_nothing(runs, problems),
        *_other_lengths(runs),
        *_tokenised(runs, problems),
        *_copies(runs, problems),
    ]


def _without_rewards(runs: SideBySide) -> list[str]:
    return [
        f"{name}: no completion has a reward, so this run has no part in who got what right."
        for place, name in enumerate(runs.names)
        if not runs.groups["scored"][runs.run == place].any()
    ]


def _other_tasks(runs: SideBySide) -> list[str]:
    tasks = {name: record.task for name, record in zip(runs.names, runs.records, strict=True) if record.task}
    if len(set(tasks.values())) < 2:
        return []
    each = ", ".join(f"{name} on {task}" for name, task in tasks.items())
    return [f"The runs were trained and tested on different tasks ({each}): their rewards do not compare."]


def _nothing_right(runs: SideBySide) -> list[str]:
    return [
        f"{name}: no completion counts as right in the whole training. If its rewards are not 0 and 1, "
        "--correct_at says from which reward on an answer is right."
        for place, name in enumerate(runs.names)
        if runs.right[runs.run == place].max() == 0
    ]


def _shared_nothing(runs: SideBySide, problems: Int) -> list[str]:
    alone = [name for place, name in enumerate(runs.names) if not (problems[:, place] >= 0).any()]
    if not alone:
        return []
    blank = [
        name
        for place, name in enumerate(runs.names)
        if not any(key for key, run in zip(runs.met.keys, runs.run, strict=True) if run == place)
    ]
    if blank:
        return [f"{_and(blank)}: the files hold no prompts, so groups cannot be matched with another run's."]
    return [
        f"{_and(alone)}: no prompt of this run is one of another run, so nothing can be set side by side "
        "problem by problem. Curves and means stand beside one another all the same."
        if len(alone) < len(runs.names)
        else "The runs share no prompt, so nothing can be set side by side problem by problem. Curves and "
        "means stand beside one another all the same."
    ]


def _other_lengths(runs: SideBySide) -> list[str]:
    last = [int(runs.groups["step"][runs.run == place].max()) for place in range(len(runs.names))]
    if len(set(last)) == 1:
        return []
    each = ", ".join(f"{name} at step {step}" for name, step in zip(runs.names, last, strict=True))
    return [f"The runs end at different steps: {each}. Final figures are over steps that all of them have."]


def _tokenised(runs: SideBySide, problems: Int) -> list[str]:
    """Whether token counts of the runs mean the same."""
    told = ""
    if len({tuple(sorted(origin)) for origin in runs.origins}) > 1:
        each = (f"{name}: {', '.join(origin)}" for name, origin in zip(runs.names, runs.origins, strict=True))
        told = f"What counts as a token differs ({'; '.join(each)})"
    elif len({record.vocabulary for record in runs.records if record.vocabulary}) > 1:
        told = "The runs have different tokenizers"
    elif other := _other_prompt_ids(runs, problems):
        told = (
            f"{other} of the shared prompts {'has' if other == 1 else 'have'} other token ids in another run"
        )
    return (
        [f"{told}: lengths, path depths and shares of tokens of these runs do not compare."] if told else []
    )


def _other_prompt_ids(runs: SideBySide, problems: Int) -> int:
    """How many problems' prompts are other token ids in some run, where runs tell them."""
    ids = np.where(problems >= 0, np.array(runs.met.ids, np.int64)[problems], 0)
    unknown = ids == 0
    high = ids.max(axis=1, initial=0)
    low = np.where(unknown, 2**32, ids).min(axis=1, initial=2**32)
    return int((low < high).sum())


def _copies(runs: SideBySide, problems: Int) -> list[str]:
    """Whether two runs hold the same completions throughout."""
    sums = np.array(runs.met.completions, np.int64)
    said = []
    for b in range(1, len(runs.names)):
        for a in range(b):
            both = problems[(problems[:, a] >= 0) & (problems[:, b] >= 0)][:, [a, b]]
            if len(both) and (sums[both[:, 0]] == sums[both[:, 1]]).all():
                which = "the only group" if len(both) == 1 else f"all {len(both)} groups"
                said.append(
                    f"{runs.names[a]} and {runs.names[b]} hold the same completions in {which} that both "
                    "have: one may be a copy of the other."
                )
    return said


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
