"""Everything that is known of one group, at once, against the literal definitions: made for long runs.

    pytest tests/core/test_whole_groups.py --hypothesis-profile=long    # 10,000 times ten groups

The groups are wilder than elsewhere: up to 12 completions, real token ids, contexts, masks and advantages of a
trainer's own.
"""

from functools import cache
from typing import Any

import numpy as np
import pytest
from groups import ten_groups
from hypothesis import given
from hypothesis import strategies as st
from literal_credits import Case, literal
from reference import ReferenceGroup
from tree_checks import assert_equals_reference

from lambda_grpo import ProcessTree, measures
from lambda_grpo.credit import CREDITS, group_advantage


class Remembering(ReferenceGroup):
    """The same definitions; each process set and path is worked out once."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.process_set = cache(super().process_set)  # type: ignore[method-assign]
        self.path = cache(super().path)  # type: ignore[method-assign]


def assert_measures_equal(tree: ProcessTree, reference: ReferenceGroup) -> None:
    rows = reference.completions
    count = range(len(rows))
    assert measures.path_depth(tree).tolist() == [reference.path_depth(i) for i in count]
    proportions = [reference.intermediate_proportion(i) for i in count]
    assert measures.intermediate_proportion(tree) == pytest.approx(proportions)
    shared = [len(reference.process_set(i, t)) > 1 for i in count for t in range(len(rows[i]))]
    assert measures.shared_tokens(tree) == sum(shared)
    assert measures.is_flat(tree) == reference.is_flat()


def assert_credits_equal(case: Case) -> None:
    tree, reference = ProcessTree.build(case.completions), Remembering(case.completions)
    for name, credit in CREDITS.items():
        got = credit(tree, case.rewards, advantages=case.advantages, mask=case.mask)
        advantage, weight = literal(name, case, group=reference)
        assert np.allclose(got.advantage, advantage, rtol=1e-4, atol=1e-5), name
        assert np.allclose(got.weight, weight, rtol=1e-5, atol=1e-6), name


@given(st.integers(0, 2**64))
def test_equal_the_definitions(seed: int) -> None:
    """Ten groups, their trees built in one pass; the credits of one of them."""
    groups = ten_groups(seed)
    completions = [row for group in groups for row in group.case.completions]
    places = [place for place, group in enumerate(groups) for _ in group.contexts]
    contexts = [context for group in groups for context in group.contexts]
    trees = ProcessTree.build_many(completions, places, contexts)
    for group, tree in zip(groups, trees, strict=True):
        reference = Remembering(group.case.completions, group.contexts)
        assert_equals_reference(tree, reference)
        assert_measures_equal(tree, reference)
        rewards = group.case.rewards
        assert np.allclose(group_advantage(rewards), reference.advantages(rewards), rtol=1e-9, atol=1e-9)
    assert_credits_equal(groups[0].case)


def test_a_planted_fault_is_seen() -> None:
    case = Case([[1, 2], [1, 3]], [1.0, 0.0], np.ones((2, 2), bool), 1.0, 0.0)
    assert_credits_equal(case)
    credit = CREDITS["lambda_grpo"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="lambda_grpo"):
        patch.setitem(CREDITS, "lambda_grpo", lambda *args, **kwargs: CREDITS["grpo"](*args, **kwargs))
        assert_credits_equal(case)
    assert CREDITS["lambda_grpo"] is credit
