from random import Random

import numpy as np
import pytest
from groups import group
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ReferenceGroup

from lambda_grpo import ProcessTree, measures


def test_worked_by_hand() -> None:
    # 0: a b c, 1: a b d, 2: a e, 3: z (see test_tree). Strictly between root and leaf:
    # 0 and 1 pass {0,1,2} and {0,1}; 2 passes {0,1,2}; 3 passes nothing.
    tree = ProcessTree.build([[1, 2, 3], [1, 2, 4], [1, 5], [26]])
    assert measures.path_depth(tree).tolist() == [2, 2, 1, 0]
    # In their leaves: c of a b c, d of a b d, e of a e, z of z.
    assert measures.intermediate_proportion(tree) == pytest.approx([2 / 3, 2 / 3, 1 / 2, 0])
    assert measures.shared_tokens(tree) == 2 + 2 + 1
    assert not measures.is_flat(tree)


def test_proper_prefix_has_an_empty_leaf() -> None:
    # 0: z, 1: a, 2: a b. 1 ends in node {1,2}, which lies between the root and 1's empty leaf.
    tree = ProcessTree.build([[26], [1], [1, 2]])
    assert measures.path_depth(tree).tolist() == [0, 1, 1]
    assert measures.intermediate_proportion(tree).tolist() == [0, 1, 0.5]
    # Without z the node where 1 ends is the root itself, which does not lie between.
    tree = ProcessTree.build([[1], [1, 2]])
    assert measures.path_depth(tree).tolist() == [0, 0]
    assert measures.intermediate_proportion(tree).tolist() == [1, 0.5]
    assert measures.is_flat(tree)


@pytest.mark.parametrize("completions", [[[1, 2]] * 3, [[1, 2]], [[]], [[1], [2], [3]]])
def test_flat_groups(completions: list[list[int]]) -> None:
    tree = ProcessTree.build(completions)
    assert measures.is_flat(tree)
    assert measures.path_depth(tree).tolist() == [0] * len(completions)
    assert measures.intermediate_proportion(tree).tolist() == [0] * len(completions)


@given(group)
@settings(max_examples=300)
def test_equal_the_definitions_with_and_without_a_full_mask(completions: list[list[int]]) -> None:
    tree, reference = ProcessTree.build(completions), ReferenceGroup(completions)
    everything = np.ones(tree.step_index.shape)
    count = range(len(completions))
    for mask in (None, everything):
        assert measures.path_depth(tree, mask).tolist() == [reference.path_depth(i) for i in count]
        assert measures.intermediate_proportion(tree, mask) == pytest.approx(
            [reference.intermediate_proportion(i) for i in count]
        )
        assert measures.shared_tokens(tree, mask) == sum(
            len(reference.process_set(i, t)) > 1 for i in count for t in range(len(completions[i]))
        )
        assert measures.counted(tree, mask).tolist() == [bool(y) for y in completions]
    assert measures.is_flat(tree) == reference.is_flat()


@given(group, st.data())
def test_masks_count_nodes_that_hold_a_policy_token(
    completions: list[list[int]], data: st.DataObject
) -> None:
    tree, reference = ProcessTree.build(completions), ReferenceGroup(completions)
    shape = tree.step_index.shape
    bits = data.draw(st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    mask = np.array(bits, bool).reshape(shape)
    for i, y in enumerate(completions):
        path = reference.path(i)
        sets = [reference.process_set(i, t) for t in range(len(y)) if mask[i, t]]
        assert measures.path_depth(tree, mask)[i] == sum(node in sets for node in path[1:-1])
        in_leaf = sum(process_set == path[-1] for process_set in sets)
        expected = 1 - in_leaf / len(sets) if sets else 0
        assert measures.intermediate_proportion(tree, mask)[i] == pytest.approx(expected)
        assert measures.counted(tree, mask)[i] == bool(sets)


@given(st.lists(st.tuples(group, st.sampled_from(["none", "all", "some"])), max_size=5), st.randoms())
def test_totals_are_the_sums_of_each_groups_measures(
    groups: list[tuple[list[list[int]], str]], random: Random
) -> None:
    trees = [ProcessTree.build(completions) for completions, _ in groups]
    masks = [
        None if kind == "none" else np.array([kind == "all" or random.random() < 0.5 for _ in index.flat], bool).reshape(index.shape)
        for index, (_, kind) in zip([tree.step_index for tree in trees], groups, strict=True)
    ]  # fmt: skip
    got = measures.totals(trees, masks)
    pairs = list(zip(trees, masks, strict=True))
    rows = [measures.counted(*pair) for pair in pairs]
    depths = [measures.path_depth(*pair)[row] for pair, row in zip(pairs, rows, strict=True)]
    proportions = [
        measures.intermediate_proportion(*pair)[row] for pair, row in zip(pairs, rows, strict=True)
    ]
    assert got.groups == len(groups)
    assert got.flat_groups == sum(measures.is_flat(*pair) for pair in pairs)
    assert got.counted == sum(row.sum() for row in rows)
    assert got.masked == sum((tree.lengths > 0).sum() for tree in trees) - got.counted
    assert got.path_depth == sum(depth.sum() for depth in depths)
    assert got.intermediate_proportion == pytest.approx(sum(proportion.sum() for proportion in proportions))
    assert got.tokens == sum(tree.policy_tokens(mask).sum() for tree, mask in pairs)
    assert got.shared_tokens == sum(measures.shared_tokens(*pair) for pair in pairs)


def test_totals_make_no_tree_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = [ProcessTree.build([[1, 2], [1, 3]]), ProcessTree.build([[4]])]

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a ProcessTree was made")

    monkeypatch.setattr(ProcessTree, "__init__", refuse)
    assert measures.totals(trees, [None, None]).groups == 2


def test_totals_by_hand() -> None:
    # Flat: z alone; and an empty completion. Not flat: a b, a c, with a shared (path depth 1, proportion 1/2), and d.
    trees = ProcessTree.build_many([[26], [], [1, 2], [1, 3], [4]], [0, 0, 1, 1, 1])
    assert measures.totals(trees, [None, None]) == measures.Totals(
        groups=2, flat_groups=1, counted=4, masked=0, path_depth=2, intermediate_proportion=1, tokens=6, shared_tokens=2
    )  # fmt: skip
    assert measures.totals([], []).groups == 0
    with pytest.raises(ValueError, match="zip"):
        measures.totals(trees, [None])
