"""The flaw, counted: numbers worked by hand, then against the paper's definitions on random groups."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ReferenceGroup

from lambda_grpo import ProcessTree, measures

# The group, with advantages chosen so that each mean is easy:
#
#   root ─┬─ 1 ─┬─ 2 ─┬─ 3   completion 0, a = 3 (the best)
#         │     │     └─ 4   completion 1, a = -2
#         │     └─ 5         completion 2, a = -2
#         └─ 6               completion 3, a = 1
#
#   step      |λ|   A(λ) = mean of a     GRPO: |λ|·A    λ-GRPO: A
#   "1"        3    (3-2-2)/3 = -1/3         -1            -1/3
#   "2"        2    (3-2)/2   =  1/2          1             1/2
#   leaves     1    3, -2, -2, 1              3,-2,-2,1     the same
GROUP = [[1, 2, 3], [1, 2, 4], [1, 5], [6]]
ADVANTAGES = np.array([3.0, -2.0, -2.0, 1.0])
TREE = ProcessTree.build(GROUP)
ONCE = 1 / TREE.size


def test_gradient_weight_by_hand():
    # Depth-first: root, "1", "2", "3", "4", "5", "6".
    grpo = measures.gradient_weight(TREE, ADVANTAGES)
    np.testing.assert_allclose(grpo, [0, -1, 1, 3, -2, -2, 1], atol=1e-12)
    np.testing.assert_allclose(
        measures.gradient_weight(TREE, ADVANTAGES, ONCE), [0, -1 / 3, 1 / 2, 3, -2, -2, 1], atol=1e-12
    )
    assert grpo[0] == 0, "the root's advantages cancel exactly"


def test_pushed_down_by_hand():
    # The best completion, 1 2 3: its token "1" has A = -1/3 < 0.
    # 1 2 4: "1" and "4". 1 5: both. 6: none.
    assert measures.tokens_pushed_down(TREE, ADVANTAGES).tolist() == [1, 2, 2, 0]
    # GRPO on 1 2 3: |-1| of |-1| + |1| + |3|. On 1 2 4: (1 + 2) of (1 + 1 + 2).
    np.testing.assert_allclose(measures.downward_share(TREE, ADVANTAGES), [1 / 5, 3 / 4, 1, 0])
    # λ-GRPO on 1 2 3: 1/3 of 1/3 + 1/2 + 3 = 23/6. On 1 2 4: (1/3 + 2) of (1/3 + 1/2 + 2) = 14/17.
    np.testing.assert_allclose(
        measures.downward_share(TREE, ADVANTAGES, ONCE), [2 / 23, 14 / 17, 1, 0], atol=1e-12
    )


def test_most_frequent_step_by_hand():
    assert measures.most_frequent_step(TREE, ADVANTAGES) == 1  # "1", shared by three
    # GRPO: 1 of 1 + 1 + 3 + 2 + 2 + 1 = 10. λ-GRPO: 1/3 of 1/3 + 1/2 + 8 = 53/6.
    assert measures.most_frequent_share(TREE, ADVANTAGES) == pytest.approx(1 / 10)
    assert measures.most_frequent_share(TREE, ADVANTAGES, ONCE) == pytest.approx(2 / 53)


def test_effective_terms_by_hand():
    # GRPO: 10² / (1 + 1 + 9 + 4 + 4 + 1) = 100/20. λ-GRPO: (53/6)² / (1/9 + 1/4 + 18) = 2809/661.
    assert measures.effective_terms(TREE, ADVANTAGES) == pytest.approx(5)
    assert measures.effective_terms(TREE, ADVANTAGES, ONCE) == pytest.approx(2809 / 661)


def test_a_long_step_counts_once_per_token():
    # "1 1 1" is shared by two of three: |λ|·A = 2·(1-3)/2 = -2 on 3 tokens; leaves 1, -3, 2 on one each.
    # Frequent step: 6 of 6 + 1 + 3 + 2. Effective terms: 12² / (3·4 + 1 + 9 + 4) = 144/26.
    tree = ProcessTree.build([[1, 1, 1, 2], [1, 1, 1, 3], [4]])
    advantages = np.array([1.0, -3.0, 2.0])
    assert measures.most_frequent_share(tree, advantages) == pytest.approx(1 / 2)
    assert measures.effective_terms(tree, advantages) == pytest.approx(144 / 26)
    assert measures.tokens_pushed_down(tree, advantages).tolist() == [3, 4, 0]


def test_the_common_prefix_of_all_is_not_the_frequent_step():
    # All begin with 9: the root, where advantages cancel. Below it "1" is shared by two.
    tree = ProcessTree.build([[9, 1, 2], [9, 1, 3], [9, 4]])
    assert measures.most_frequent_step(tree, np.array([2.0, 0.0, -2.0])) == 1


@pytest.mark.parametrize(
    ("group", "advantages"),
    [([[1, 2], [1, 3]], [0.0, 0.0]), ([[1], [1]], [1.0, -1.0]), ([[], []], [1.0, -1.0])],
    ids=["equal rewards", "equal completions", "empty completions"],
)
def test_no_gradient_gives_nan_and_no_tokens(group, advantages):
    tree, a = ProcessTree.build(group), np.array(advantages)
    assert math.isnan(measures.most_frequent_share(tree, a))
    assert math.isnan(measures.effective_terms(tree, a))
    assert np.isnan(measures.downward_share(tree, a)).all()
    assert not measures.tokens_pushed_down(tree, a).any()


rows = st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=2, max_size=7)


@settings(max_examples=150, deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_agrees_with_the_definitions(completions, random):
    rewards = [float(random.randint(-3, 3)) for _ in completions]
    reference, tree = ReferenceGroup(completions), ProcessTree.build(completions)
    a = reference.advantages(rewards)
    sets = [[reference.process_set(i, t) for t in range(len(y))] for i, y in enumerate(reference.completions)]

    def push(members, once):
        """What one token of a step is pushed by: the sum of its completions' weighted advantages."""
        return sum(a[j] for j in members) / (len(members) if once else 1)

    for once, weights in ((False, 1.0), (True, 1 / tree.size)):
        down = [sum(max(-push(s, once), 0) for s in path) for path in sets]
        total = [sum(abs(push(s, once)) for s in path) for path in sets]
        expected = [d / t if t > 1e-9 else math.nan for d, t in zip(down, total, strict=True)]
        np.testing.assert_allclose(measures.downward_share(tree, a, weights), expected, atol=1e-9)
        # Each (set, position) is one tree term.
        terms = {(s, t): abs(push(s, once)) for path in sets for t, s in enumerate(path)}
        squares = sum(g**2 for g in terms.values())
        got = measures.effective_terms(tree, a, weights)
        if squares > 1e-15:
            assert got == pytest.approx(sum(terms.values()) ** 2 / squares)
        root = frozenset(range(len(completions)))
        below = {s for s, _ in terms if s != root}
        if below and sum(terms.values()) > 1e-6:
            frequent = max(
                below, key=lambda s: (len(s), round(sum(abs(push(s, False)) for k, _ in terms if k == s), 9))
            )
            mass = sum(g for (s, _), g in terms.items() if s == frequent)
            share = measures.most_frequent_share(tree, a, weights)
            size = tree.size[measures.most_frequent_step(tree, a)]
            assert size == len(frequent)
            if not once:  # ties in |λ| and weight may be broken either way under λ-GRPO
                assert share == pytest.approx(mass / sum(terms.values()), abs=1e-9)
    negative = [sum(push(s, False) < -1e-9 for s in path) for path in sets]
    assert measures.tokens_pushed_down(tree, a).tolist() == negative


def test_order_of_completions_does_not_matter():
    rng = np.random.default_rng(0)
    for _ in range(20):
        order = rng.permutation(4)
        tree = ProcessTree.build([GROUP[i] for i in order])
        a = ADVANTAGES[order]
        assert measures.tokens_pushed_down(tree, a).tolist() == [[1, 2, 2, 0][i] for i in order]
        assert measures.most_frequent_share(tree, a) == pytest.approx(1 / 10)
