"""Hypothesis strategies for groups of completions that share a lot."""

from hypothesis import strategies as st

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
