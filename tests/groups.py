"""Hypothesis strategies for groups of completions that share a lot."""

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


@st.composite
def whole_group(draw: st.DrawFn) -> tuple[Case, list[str]]:
    """A group whose completions branch off one another, with rewards, mask, advantages and contexts."""
    vocabulary = draw(st.sampled_from([[0], [0, 1], [0, 1, 2], [5, 151_642, 2**31 - 1]]))
    completions: list[list[int]] = []
    for _ in range(draw(st.integers(1, 12))):
        trunk = draw(st.sampled_from([[], *completions]))
        kept = draw(st.integers(0, len(trunk)))
        completions.append(trunk[:kept] + draw(st.lists(st.sampled_from(vocabulary), max_size=5)))
    count = len(completions)
    rewards = draw(st.lists(st.one_of(st.sampled_from([0.0, 1.0]), reward), min_size=count, max_size=count))
    case = plain(completions, rewards)
    if draw(st.booleans()):
        case.slope, case.shift = draw(st.floats(0.1, 4)), draw(st.floats(-2, 2))
        masked = draw(st.sets(st.integers(0, max(case.mask.size - 1, 0)), max_size=8))
        case.mask = ~np.isin(np.arange(case.mask.size), list(masked)).reshape(case.mask.shape)
    contexts = draw(
        st.lists(st.sampled_from(draw(st.sampled_from(["a", "ab"]))), min_size=count, max_size=count)
    )
    return case, contexts
