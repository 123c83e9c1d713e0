"""`Group`: the completions of one prompt at one training step, and how it is made of a file's rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lambda_grpo.credit import group_advantage
from lambda_grpo.rollouts import trl_tables
from lambda_grpo.rollouts.blocks import Block, blocks_of
from lambda_grpo.rollouts.files import FileRows
from lambda_grpo.rollouts.tokens import FALLBACK, Tokeniser, ids_of_pieces, pieces
from lambda_grpo.rollouts.values import (
    BadRow,
    Float64,
    Int32,
    is_unscored,
    numbers,
    right_or_wrong,
    scores,
    text,
    token_ids,
    token_strings,
)

FROM_IDS = "token ids in the file"
FROM_STRINGS = "token strings in the file"
_NO_IDS = np.zeros(0, np.int32)


@dataclass(frozen=True, eq=False)
class Group:
    """The G ≥ 2 completions of one prompt at one training step.

    Attributes:
        run, step, name: which group it is; `name` is its id within the step.
        prompt: its text; chat messages are joined.
        texts: G completions; empty if the file holds token ids only.
        token_ids: G int32 arrays.
        token_texts: G lists of token strings; empty if they are not known.
        rewards: (G,) float64; NaN where no reward function could score the completion.
        advantages: (G,) float64, finite; the file's own if it has them, else `group_advantage` of the
            rewards that are known. 0 for unscored completions, unless the file says otherwise.
        correct: (G,) float64, 1 right, 0 wrong, nan if the file does not say.
        contexts: (G,) int, equal where prompts are equal; different prompts share no step.
        prompt_ids: G int32 arrays, the prompts' token ids as the policy saw them; empty if not known.
        prompt_lengths: (G,) int, the prompts' tokens, counted as the completions' are; empty if they are not
            known.
        tokens_from: what made the token ids.
        blocks: what the completions were sampled in, if they forked on purpose; empty if the file does not
            say, or holds no tokens of the policy's.
    """

    run: str
    step: int
    name: str
    prompt: str
    texts: Sequence[str]
    token_ids: Sequence[Int32]
    token_texts: Sequence[Sequence[str]]
    rewards: Float64
    advantages: Float64
    correct: Float64
    contexts: NDArray[np.int64]
    tokens_from: str
    prompt_ids: Sequence[Int32]
    prompt_lengths: NDArray[np.int64]
    blocks: Sequence[Block] = ()

    @property
    def scored(self) -> NDArray[np.bool_]:
        """(G,) the completions that have a reward. The others are in the tree, and in no mean of rewards."""
        return ~np.isnan(self.rewards)


@dataclass(frozen=True)
class GroupRows:
    """Which rows make a group, still unchecked.

    Attributes:
        run, name: its run, and its id within the step.
        places: its rows' places in a block.
        reward_columns: TRL's reward functions, empty for other formats.
    """

    run: str
    name: str
    places: Sequence[int]
    reward_columns: Sequence[str]


def make_group(rows: FileRows, wanted: GroupRows, step: int, tokeniser: Tokeniser | None) -> Group:
    """Check the rows and make a group of them.

    Raises:
        BadRow: the first row that cannot be used, and why.
    """
    size = len(wanted.places)
    columns = {name: [values[place] for place in wanted.places] for name, values in rows.columns.items()}
    if size < 2:
        raise BadRow(0, f"group {wanted.name!r} of step {step} has one completion, expected at least 2")
    if wanted.reward_columns:
        rewards = trl_tables.total_reward(columns, wanted.reward_columns)
    else:
        rewards = scores(columns.get("reward", [None] * size), "reward")
    prompts = [text(i, value, "prompt") for i, value in enumerate(columns.get("prompt", [""] * size))]
    prompt_ids = _prompt_ids(columns)
    keys = [(prompt, ids.tobytes()) for prompt, ids in zip_longest(prompts, prompt_ids, fillvalue=_NO_IDS)]
    firsts: dict[Any, int] = {}  # each prompt's first row
    texts = _texts(columns)
    ids, strings, tokens_from = _tokens(columns, texts, tokeniser)
    correct = columns.get("correct", [None] * size)
    contexts = np.array([firsts.setdefault(key, i) for i, key in enumerate(keys)])
    return Group(
        run=wanted.run,
        step=step,
        name=wanted.name,
        prompt=prompts[0],
        texts=texts,
        token_ids=ids,
        token_texts=strings,
        rewards=rewards,
        advantages=_advantages(columns, rewards),
        correct=np.array([right_or_wrong(i, value) for i, value in enumerate(correct)]),
        contexts=contexts,
        tokens_from=tokens_from,
        prompt_ids=prompt_ids,
        prompt_lengths=_prompt_lengths(prompts, prompt_ids, tokens_from, tokeniser),
        blocks=_blocks(columns, ids, tokens_from, contexts),
    )


def _advantages(columns: Mapping[str, Sequence[Any]], rewards: Float64) -> Float64:
    """(G,) the file's own, or those of the rewards that are known; 0 for unscored completions."""
    scored = ~np.isnan(rewards)
    if "advantage" in columns:
        given = zip(columns["advantage"], scored, strict=True)
        return numbers(
            [0 if is_unscored(value) and not told else value for value, told in given], "advantage"
        )
    advantages = np.zeros(len(rewards))
    advantages[scored] = group_advantage(rewards[scored])
    return advantages


def _texts(columns: Mapping[str, Sequence[Any]]) -> list[str]:
    values = columns.get("completion", [])
    if all(value is None for value in values) and ("token_ids" in columns or "tokens" in columns):
        return []
    return [text(i, value, "completion") for i, value in enumerate(values)]


def _prompt_ids(columns: Mapping[str, Sequence[Any]]) -> list[Int32]:
    """The prompts' token ids; none if a row has none."""
    values = columns.get("prompt_ids", [None])
    if any(value is None for value in values):
        return []
    return [token_ids(i, value, "prompt_ids") for i, value in enumerate(values)]


def _blocks(
    columns: Mapping[str, Sequence[Any]],
    ids: Sequence[Int32],
    tokens_from: str,
    contexts: NDArray[np.int64],
) -> list[Block]:
    """The blocks that sampled the completions; none if a row has none, or tokens are not the policy's."""
    values = columns.get("block", [None])
    if any(value is None for value in values) or tokens_from not in (FROM_IDS, FROM_STRINGS):
        return []
    return blocks_of(values, ids, contexts)


def _prompt_lengths(
    prompts: Sequence[str], prompt_ids: Sequence[Int32], tokens_from: str, tokeniser: Tokeniser | None
) -> NDArray[np.int64]:
    """(G,) tokens of each prompt; empty if they are not known."""
    if prompt_ids:
        return np.array([len(ids) for ids in prompt_ids])
    if not all(prompts) or not (tokeniser or tokens_from == FALLBACK):
        return np.zeros(0, np.int64)
    distinct = list(dict.fromkeys(prompts))
    counted = tokeniser.encode(distinct) if tokeniser else [pieces(prompt) for prompt in distinct]
    lengths = dict(zip(distinct, map(len, counted), strict=True))
    return np.array([lengths[prompt] for prompt in prompts])


def _tokens(
    columns: Mapping[str, Sequence[Any]], texts: Sequence[str], tokeniser: Tokeniser | None
) -> tuple[Sequence[Int32], Sequence[Sequence[str]], str]:
    """Token ids, token strings if they are known, and what made the ids."""
    strings: Sequence[Sequence[str]] = ()
    if "tokens" in columns:
        strings = [token_strings(i, row) for i, row in enumerate(columns["tokens"])]
    if "token_ids" in columns:
        ids = [token_ids(i, row) for i, row in enumerate(columns["token_ids"])]
        for i, row in enumerate(strings):
            if len(row) != len(ids[i]):
                raise BadRow(i, f"tokens has {len(row)} strings but token_ids has {len(ids[i])} ids")
        return ids, strings, FROM_IDS
    if strings:
        return ids_of_pieces(strings), strings, FROM_STRINGS
    if tokeniser:
        return tokeniser.encode(texts), (), f"tokenizer {tokeniser.source}"
    return ids_of_pieces([pieces(value) for value in texts]), (), FALLBACK
