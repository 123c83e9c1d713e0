"""Groups that a gradient can be computed for, and whether they fit a model's vocabulary and tokenizer."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from lambda_grpo.errors import InputError
from lambda_grpo.rollouts import Group
from lambda_grpo.rollouts.group import FROM_IDS
from lambda_grpo.rollouts.tokens import misfit

_LOOKED_AT = 20  # completions whose text is compared with what their ids decode to
_TOKENS = 200  # of each


def pushing_groups(groups: Iterable[Group], most: int | None) -> tuple[list[Group], int]:
    """The first `most` groups with an advantage that is not 0, by run and step; and how many were read.

    Raises:
        InputError: a group without token ids; no group that pushes anything.
    """
    found: list[Group] = []
    read = unscored = 0
    for group in groups:
        _check_ids(group)
        read += 1
        unscored += int((~group.scored).sum())
        if group.advantages.any():
            found.append(group)
        if most and len(found) == most:
            break
    if not found:
        why = f", {unscored} completions have no reward" if unscored else ""
        raise InputError(
            f"all {read} groups have equal rewards{why}: no token is pushed, so there is no gradient to "
            "compare"
        )
    runs = {run: place for place, run in enumerate(dict.fromkeys(group.run for group in found))}
    return sorted(found, key=lambda group: (runs[group.run], group.step)), read


def _check_ids(group: Group) -> None:
    there = {"token_ids": group.tokens_from == FROM_IDS, "prompt_ids": len(group.prompt_ids) > 0}
    lacking = [name for name, found in there.items() if not found]
    if lacking:
        raise InputError(
            f"{_name(group)} has no {' and no '.join(lacking)}: a gradient needs the ids that the policy "
            "saw. `lambda-grpo train` saves them; other files need these columns"
        )
    empty = [i for i, ids in enumerate(group.prompt_ids) if len(ids) == 0]
    if empty:
        raise InputError(
            f"{_name(group)}: prompt_ids of completion #{empty[0]} is empty, and something must predict its "
            "first token"
        )


def _name(group: Group) -> str:
    return f"{group.run}, step {group.step}, group {group.name!r}"


def check_fit(groups: Sequence[Group], tokenizer: Any, vocabulary: int, model: str) -> None:
    """Refuse ids that the model does not know, or that its tokenizer gives other texts for.

    Raises:
        InputError: naming the id, or both texts.
    """
    for group in groups:
        highest = max(int(ids.max(initial=-1)) for ids in (*group.token_ids, *group.prompt_ids))
        if highest >= vocabulary:
            raise InputError(
                f"{_name(group)} holds token id {highest}, but {model} has a vocabulary of {vocabulary}: is "
                "this the model that sampled the rollouts?"
            )
    if unlike := misfit(list(islice(_texts(groups, tokenizer), _LOOKED_AT))):
        saved, decoded = unlike
        raise InputError(
            f"the tokenizer of {model} does not fit the token ids: a completion saved as {saved!r} decodes "
            f"to {decoded!r}. Is this the model that sampled the rollouts?"
        )


def _texts(groups: Sequence[Group], tokenizer: Any) -> Iterable[tuple[str, str]]:
    """Completions as saved and as decoded; only of their beginnings, and without special tokens."""
    for group in groups:
        for saved, ids in zip(group.texts, group.token_ids, strict=False):
            if saved.strip():
                yield saved, tokenizer.decode(ids[:_TOKENS].tolist(), skip_special_tokens=True)
