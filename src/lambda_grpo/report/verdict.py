"""What the report opens with: what λ-GRPO changes in a run, in two sentences.

The bounds between "little" and "much" are ours. They help to read a number, and no study supports them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lambda_grpo.report.analysis import Table

# Share of the push that λ-GRPO removes, and nodes on the way to a leaf, up to which a word holds.
_CHANGES = (
    (1e-9, "nothing"),
    (0.005, "next to nothing"),
    (0.05, "little"),
    (0.2, "something"),
    (math.inf, "much"),
)
_DEPTHS = ((0.0, "trivial"), (1.0, "shallow"), (3.0, "moderately deep"), (math.inf, "deep"))
_FIFTHS = 5  # of the training, of which the first and the last are compared


def verdict(means: Mapping[str, Any], flat_groups: int, steps: Table) -> dict[str, Any]:
    """What is to be said of one run, and the numbers it rests on.

    Args:
        means: the run's row of `Analysis.runs()`.
        flat_groups: how many groups have no step that some, but not all completions share.
        steps: the run's rows of `Analysis.steps()`, in order.

    Returns:
        `sentences`, two of them; `change`, one of the words, None if rewards are equal in all groups;
        `push_removed` and `shared_tokens`, over the run and in the first and last fifth of its steps;
        `push_cancelled`, as in `analysis.group_row`; `packing_ratio`, `sampling_ratio` and
        `prompts_counted`: without the prompts' tokens the first counts completions only, and the second is
        None.
    """
    trend = {name: _ends(steps, name) for name in ("push_removed", "shared_tokens")}
    counted = not math.isnan(means["packing_ratio"])
    unique = means["unique_tokens"] * means["groups"]
    packing = means["packing_ratio"] if counted else means["tokens"] / unique if unique else math.nan
    sampling = means["sampling_ratio"] if counted else None
    pushed = not math.isnan(means["push_removed"])
    return {
        "sentences": [
            _change(means, trend["push_removed"]) if pushed else _no_push(means),
            _depth(means, flat_groups) + _savings(packing, sampling),
        ],
        "change": _word(_felt(means), _CHANGES) if pushed else None,
        "push_cancelled": means["push_cancelled"],
        **{
            name: {"mean": means[name], "first_fifth": ends[0], "last_fifth": ends[1]}
            for name, ends in trend.items()
        },
        "path_depth": means["path_depth"],
        "intermediate_proportion": means["intermediate_proportion"],
        "packing_ratio": packing,
        "sampling_ratio": sampling,
        "prompts_counted": counted,
    }


def _change(means: Mapping[str, Any], ends: Sequence[float]) -> str:
    removed, cancelled = means["push_removed"], means["push_cancelled"]
    text = f"λ-GRPO changes {_word(_felt(means), _CHANGES)} in this run: "
    taken = f"takes {percent(removed)} off GRPO's push, because {_shared(means)}{_trend(*ends)}"
    if cancelled > 0.5 * removed:
        which = "what" if _felt(means) <= _CHANGES[0][0] else "most of what"
        return (
            f"{text}{which} it takes off cancels anyway, because it lies on beginnings that all "
            f"completions of a group share. It {taken}."
        )
    if cancelled > 0.1 * removed:
        taken += (
            f"; {percent(cancelled)} of the push lies on beginnings that all completions share, where it "
            "cancels anyway"
        )
    return f"{text}it {taken}."


def _trend(first: float, last: float) -> str:
    """How much is taken off early and late in training, if that differs."""
    if abs(last - first) > max(0.005, 0.25 * max(first, last)):
        return f" ({percent(first)} of the push early in training, {percent(last)} late)"
    return ""


def _felt(means: Mapping[str, Any]) -> float:
    """The share of the push that is removed where pushes do not cancel."""
    return max(0.0, float(means["push_removed"] - means["push_cancelled"]))


def _no_push(means: Mapping[str, Any]) -> str:
    return (
        "λ-GRPO changes nothing in this run: rewards are equal within every group, so GRPO pushes no token, "
        f"although {_shared(means)}."
    )


def _shared(means: Mapping[str, Any]) -> str:
    share = percent(means["shared_tokens"])
    return f"{share} of the tokens are shared with other completions of their group"


def _depth(means: Mapping[str, Any], flat_groups: int) -> str:
    depth, groups = means["path_depth"], means["groups"]
    if math.isnan(depth):
        return "There is no hidden process reward model, because no completion has a token"
    if flat_groups == groups:
        shared = (
            " (what is shared begins all completions, or is a whole one)" if means["shared_tokens"] else ""
        )
        return (
            f"The hidden process reward model is trivial: no completion passes an intermediate step{shared}"
        )
    return (
        f"The hidden process reward model is {_word(depth, _DEPTHS)}: a completion passes "
        f"{plural(number(depth), 'intermediate step')} on average, and "
        f"{percent(means['intermediate_proportion'])} of its tokens lie before its own last step"
    )


def _savings(packing: float, sampling: float | None) -> str:
    if math.isnan(packing):
        return "."
    update = f"; packing would cut the tokens of an update {number(packing)}-fold"
    if sampling is None:
        return update + ", prompts not counted, because the file does not tell their tokens."
    return f"{update} and the tree sampler those of sampling {number(sampling)}-fold, prompts included."


def _word(value: float, words: Sequence[tuple[float, str]]) -> str:
    """The first word whose bound is not below the value."""
    return next(word for bound, word in words if value <= bound)


def _ends(steps: Table, name: str) -> tuple[float, float]:
    """The means of a measure over the first and the last fifth of the steps that define it; nan of none."""
    known = [float(value) for value in steps[name] if not math.isnan(value)]
    count = max(1, len(known) // _FIFTHS)
    if not known:
        return math.nan, math.nan
    return sum(known[:count]) / count, sum(known[-count:]) / count


def percent(share: float) -> str:
    """A share for reading.

    >>> percent(0.0449), percent(0.449), percent(0.0)
    ('4.5%', '45%', '0%')
    """
    value = 100 * share
    return f"{value:.1f}%" if value and abs(value) < 9.95 else f"{value:.0f}%"


def number(value: float) -> str:
    """A number for reading: two digits below 10, whole above.

    >>> number(1.2345), number(1234.5), number(2.0)
    ('1.2', '1234', '2')
    """
    return f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}"


def plural(count: int | str, word: str) -> str:
    """A count, or a number as it is shown, with its noun.

    >>> plural(1, "group"), plural(0, "group"), plural(number(1.0), "step")
    ('1 group', '0 groups', '1 step')
    """
    return f"{count} {word}" + ("" if str(count) == "1" else "s")
