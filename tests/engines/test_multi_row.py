"""Rollouts of several rows: |λ| counts rollouts whose rows begin with the same tokens, not rows."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import ReferenceGroup

from lambda_grpo import credit
from lambda_grpo.engines.multi_row import Row, credit_rows
from lambda_grpo.tree import ProcessTree


def row(group: str, rollout: int, prompt: list[int], response: list[int], advantage: float = 1.0) -> Row:
    ids = np.array(prompt + response)
    return Row(group, rollout, ids, np.arange(len(ids)) >= len(prompt), advantage, advantage)


def weights(rows: list[Row]) -> list[list[float]]:
    return [result.weight.round(4).tolist() for result in credit_rows(rows, credit.lambda_grpo)[0]]


def test_single_rows_are_an_ordinary_group() -> None:
    rows = [row("a", 0, [1, 2], [5, 6]), row("b", 0, [1, 2], [5]), row("a", 1, [1, 2], [5, 8])]
    assert weights(rows) == [[0, 0, 0.5, 1], [0, 0, 1], [0, 0, 0.5, 1]]
    _, means = credit_rows(rows, credit.lambda_grpo)
    # Group a: two leaves below the root [1 2 5]; one of two policy tokens shared. Group b: one completion, its root.
    assert means == pytest.approx(
        {
            "tree/path_depth": 0,
            "tree/intermediate_proportion": (0.5 + 0.5 + 0) / 3,
            "tree/shared_tokens": 2 / 5,
            "tree/flat_groups": 1,
            "credit/mean_weight": 4 / 5,
        }
    )


@pytest.mark.parametrize("name", sorted(credit.CREDITS))
def test_a_common_prompt_changes_no_credit(name: str) -> None:
    responses, advantages = [[5, 6, 7], [5, 6, 8, 9], [5], [6, 6], [5, 6, 7]], [1.0, -0.5, 0.25, 0.0, -0.75]
    bound = credit.CREDITS[name]
    rows = [row("a", i, [1, 2], *each) for i, each in enumerate(zip(responses, advantages, strict=True))]
    expected = bound(ProcessTree.build(responses), advantages, advantages=advantages)
    for i, result in enumerate(credit_rows(rows, bound)[0]):
        assert np.allclose(result.advantage[2:], expected.advantage[i, : len(responses[i])], atol=1e-6)
        assert np.allclose(result.weight[2:], expected.weight[i, : len(responses[i])], atol=1e-6)


def test_a_growing_history_is_one_completion() -> None:
    """Rollout 0 answers 5 6, observes 9, answers 7, each call its own row; rollout 1 answers 5 8 at once."""
    rows = [row("a", 0, [1, 2], [5, 6]), row("a", 0, [1, 2, 5, 6, 9], [7]), row("a", 1, [1, 2], [5, 8])]
    assert weights(rows) == [[0, 0, 0.5, 1], [0, 0, 0, 0, 0, 1], [0, 0, 0.5, 1]]  # by rows: 1/3 and 1/2


def test_a_rewritten_history_counts_its_rollout_once() -> None:
    """Rollout 0 calls twice after 5, with different histories: 5 is in three rows of two rollouts."""
    rows = [
        row("a", 0, [1], [5]),
        row("a", 0, [1, 5, 8], [6]),
        row("a", 0, [1, 5, 9], [7]),
        row("a", 1, [1], [5, 9, 7]),
    ]
    # 5: rollouts 0 and 1. 6: only 0. 7 of rollout 0 after 1 5 9: both rollouts. 9 7 of rollout 1: both.
    assert weights(rows) == [[0, 0.5], [0, 0, 0, 1], [0, 0, 0, 0.5], [0, 0.5, 0.5, 0.5]]


def test_process_averages_over_rollouts() -> None:
    """Rollout 0 has two rows with the step 5; A = (1 + -2) / 2, not (1 + 1 - 2) / 3."""
    rows = [row("a", 0, [1], [5]), row("a", 0, [1, 5, 9], [7]), row("a", 1, [1], [5], advantage=-2)]
    results, _ = credit_rows(rows, credit.process)
    assert [r.weighted.tolist() for r in results] == [[0, -0.5], [0, 0, 0, 1], [0, -0.5]]


sequence = st.lists(st.integers(0, 1), min_size=1, max_size=5)
batch = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 2), sequence, sequence), min_size=1, max_size=8
)


@given(batch)
def test_equals_the_definition(drawn: list[tuple[str, int, list[int], list[int]]]) -> None:
    """Against reference.py over rows, whose process sets are then read as sets of rollouts."""
    rows = [row(*each) for each in drawn]
    results, means = credit_rows(rows, credit.lambda_grpo)
    for group in {each.group for each in rows}:
        numbers = [i for i, each in enumerate(rows) if each.group == group]
        reference = ReferenceGroup([rows[i].ids.tolist() for i in numbers])
        for place, i in enumerate(numbers):
            for t in np.flatnonzero(rows[i].mask):
                rollouts = {rows[numbers[j]].rollout for j in reference.process_set(place, t)}
                assert results[i].weight[t] == np.float32(1 / len(rollouts))
                assert results[i].advantage[t] == 1
            assert not results[i].weight[~rows[i].mask].any()
    assert 0 < means["credit/mean_weight"] <= 1


def test_counting_rows_would_be_noticed() -> None:
    """Planted fault: every row a rollout of its own."""
    rows = [row("a", 0, [1], [5]), row("a", 0, [1, 5, 9], [7])]
    apart = [Row(r.group, i, r.ids, r.mask, r.reward, r.advantage) for i, r in enumerate(rows)]
    assert weights(rows)[0] == [0, 1] != weights(apart)[0]


def test_a_credits_own_parameters_pass() -> None:
    def scaled(tree, rewards, *, advantages=None, mask=None, factor=1.0):
        plain = credit.grpo(tree, rewards, advantages=advantages, mask=mask)
        return credit.TokenCredit(plain.advantage, plain.weight * np.float32(factor))

    results, _ = credit_rows([row("a", 0, [1], [5])], partial(scaled, factor=3.0))
    assert results[0].weight.tolist() == [0, 3]
