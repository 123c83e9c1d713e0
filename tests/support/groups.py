"""Hypothesis strategies for groups of completions that share a lot."""

from dataclasses import dataclass
from random import Random

import numpy as np
from hypothesis import strategies as st
from literal_credits import Case, plain

tokens = st.integers(0, 2)
completion = st.lists(tokens, max_size=6)
group = st.lists(completion, min_size=1, max_size=7)
reward = st.floats(-5, 5, allow_nan=False, width=32)


@st.composite
def group_and_rewards(draw: st.DrawFn) -> tuple[list[list[int]], list[float]]:
    completions = draw(group)
    return completions, draw(st.lists(reward, min_size=len(completions), max_size=len(completions)))


@st.composite
def group_and_contexts(draw: st.DrawFn) -> tuple[list[list[int]], list[str]]:
    completions = draw(group)
    contexts = st.lists(st.sampled_from("ab"), min_size=len(completions), max_size=len(completions))
    return completions, draw(contexts)


@dataclass
class WholeGroup:
    """All that is known of a group: completions, rewards, mask, advantages; and contexts."""

    case: Case
    contexts: list[str]


def ten_groups(seed: int) -> list[WholeGroup]:
    """From one drawn seed: ten times as fast as a draw for each token, but it does not shrink."""
    random = Random(seed)
    return [whole_group(random) for _ in range(10)]


def whole_group(random: Random) -> WholeGroup:
    """One whose completions branch off one another."""
    vocabulary = random.choice([[0], [0, 1], [0, 1, 2], [5, 151_642, 2**31 - 1]])
    completions: list[list[int]] = []
    for _ in range(random.randint(1, random.choice([4, 12]))):
        trunk = random.choice([[], *completions])
        more = random.choices(vocabulary, k=random.randint(0, 5))
        completions.append(trunk[: random.randint(0, len(trunk))] + more)
    rewards = [random.choice([0.0, 1.0, random.uniform(-5, 5)]) for _ in completions]
    case = plain(completions, rewards)
    if random.random() < 0.5:
        case.slope, case.shift = random.uniform(0.1, 4), random.uniform(-2, 2)
        kept = random.choice([0.5, 0.9])
        case.mask = np.array([random.random() < kept for _ in case.mask.flat], bool).reshape(case.mask.shape)
    return WholeGroup(case, random.choices(random.choice(["a", "ab"]), k=len(completions)))
