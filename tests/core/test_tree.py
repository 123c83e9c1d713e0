import numpy as np
import pytest
from groups import group, group_and_contexts
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ReferenceGroup
from tree_checks import assert_equals_reference

from lambda_grpo import InputError, ProcessTree


def test_worked_by_hand() -> None:
    # 0: a b c      root {0,1,2,3}: no common prefix, because 3 starts with z
    # 1: a b d      ├─ {0,1,2} "a"        tokens [0, 1)
    # 2: a e        │  ├─ {0,1} "b"       tokens [1, 2)
    # 3: z          │  │  ├─ {0} "c"      tokens [2, 3)
    #               │  │  └─ {1} "d"
    #               │  └─ {2} "e"         tokens [1, 2)
    #               └─ {3} "z"            tokens [0, 1)
    a, b, c, d, e, z = 1, 2, 3, 4, 5, 26
    tree = ProcessTree.build([[a, b, c], [a, b, d], [a, e], [z]])
    assert tree.num_completions == 4
    assert tree.num_steps == 7
    assert tree.parent.tolist() == [-1, 0, 1, 2, 2, 1, 0]
    assert tree.start.tolist() == [0, 0, 1, 2, 2, 1, 0]
    assert tree.end.tolist() == [0, 1, 2, 3, 3, 2, 1]
    assert tree.size.tolist() == [4, 3, 2, 1, 1, 1, 1]
    assert tree.depth.tolist() == [0, 1, 2, 3, 3, 2, 1]
    assert tree.leaf.tolist() == [3, 4, 5, 6]
    assert tree.tokens.tolist() == [a, b, c, d, e, z]
    assert tree.unique_tokens == 6
    assert tree.set_sizes().tolist() == [[3, 2, 1], [3, 2, 1], [3, 1, 0], [1, 0, 0]]


def test_prefix_duplicate_and_empty() -> None:
    # 0: "", 1: x, 2: x y, 3: x y. The root is {0,1,2,3}; 1 ends inside node {1,2,3} "x".
    tree = ProcessTree.build([[], [7], [7, 8], [7, 8]])
    assert tree.size.tolist() == [4, 3, 2]
    assert tree.leaf.tolist() == [0, 1, 2, 2]
    assert tree.set_sizes().tolist() == [[0, 0], [3, 0], [3, 2], [3, 2]]


@pytest.mark.parametrize(
    "completions", [[[]], [[5]], [[5, 6]] * 4, [[], []]], ids=["empty", "one", "all equal", "all empty"]
)
def test_the_root_is_the_only_leaf(completions: list[list[int]]) -> None:
    tree = ProcessTree.build(completions)
    assert tree.num_steps == 1
    assert tree.size.tolist() == [len(completions)]
    assert tree.end.tolist() == [len(completions[0])]
    assert tree.leaf.tolist() == [0] * len(completions)


@given(group)
@settings(max_examples=400)
def test_equals_the_definitions(completions: list[list[int]]) -> None:
    assert_equals_reference(ProcessTree.build(completions), ReferenceGroup(completions))


@given(group_and_contexts())
@settings(max_examples=200)
def test_contexts_share_nothing(case: tuple[list[list[int]], list[str]]) -> None:
    completions, contexts = case
    assert_equals_reference(ProcessTree.build(completions, contexts), ReferenceGroup(completions, contexts))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 2), max_size=5)), min_size=1, max_size=14)
)
def test_many_groups_in_one_pass_equal_one_by_one(rows: list[tuple[int, list[int]]]) -> None:
    ids, completions = zip(*rows, strict=True)
    trees = ProcessTree.build_many(completions, ids)
    for tree, group_id in zip(trees, dict.fromkeys(ids), strict=True):
        alone = ProcessTree.build([y for g, y in rows if g == group_id])
        for name in ("lengths", "leaf", "parent", "start", "end", "size", "depth", "step_index", "tokens"):
            assert getattr(tree, name).tolist() == getattr(alone, name).tolist(), name


@given(group, st.randoms())
def test_row_order_only_permutes_rows(completions: list[list[int]], random: object) -> None:
    order = list(range(len(completions)))
    random.shuffle(order)
    tree, permuted = ProcessTree.build(completions), ProcessTree.build([completions[i] for i in order])
    assert permuted.set_sizes().tolist() == tree.set_sizes()[order].tolist()
    assert permuted.parent.tolist() == tree.parent.tolist()
    assert permuted.tokens.tolist() == tree.tokens.tolist()


@given(group)
def test_tokens_lie_in_depth_first_order(completions: list[list[int]]) -> None:
    tree = ProcessTree.build(completions)
    begin = np.concatenate([[0], np.cumsum(tree.end - tree.start)])
    assert begin[-1] == tree.unique_tokens == len(tree.tokens)
    for i, y in enumerate(completions):
        node = tree.step_index[i, : len(y)]
        assert tree.tokens[begin[node] + np.arange(len(y)) - tree.start[node]].tolist() == y


def test_comb_of_5000_nested_splits() -> None:
    # Completion i is i sevens, then its own token: each split hangs below the one before.
    count = 5000
    tree = ProcessTree.build([np.r_[np.full(i, 7), 100 + i] for i in range(count)])
    assert tree.num_steps == 2 * count - 1
    assert tree.depth.max() == count - 1
    assert tree.unique_tokens == (count - 1) + count
    sizes = tree.set_sizes()
    assert sizes[-1, :-1].tolist() == list(
        range(count - 1, 0, -1)
    )  # the t-th seven is held by the later ones
    assert (sizes[np.arange(count), np.arange(count)] == 1).all()


def test_all_different_at_token_0_and_large_ids() -> None:
    top = 2**31 - 1
    tree = ProcessTree.build([[top - i, top] for i in range(50)])
    assert tree.num_steps == 51
    assert (tree.set_sizes() == 1).all()
    assert tree.tokens.max() == top


def test_long_rows_that_part_beyond_the_first_blocks() -> None:
    rng = np.random.default_rng(0)
    trunk = rng.integers(0, 2**31, 9000)
    cuts = [0, 63, 64, 65, 319, 320, 321, 1344, 8999, 9000]
    rows = [np.r_[trunk[:cut], 2**31 - 1 - np.arange(3)] for cut in cuts]
    sizes = ProcessTree.build([*rows, trunk]).set_sizes()
    for t in range(9000):
        expected = 1 + sum(cut > t for cut in cuts)
        assert sizes[-1, t] == expected


def test_memory_bound_blocks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[1] * n for n in range(0, 200, 7)]
    whole = ProcessTree.build(rows).set_sizes()
    monkeypatch.setattr("lambda_grpo.process_sets._MAX_COMPARED", 50)
    assert (ProcessTree.build(rows).set_sizes() == whole).all()


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint16, np.uint64])
def test_padded_rows_of_any_integer_dtype(dtype: type) -> None:
    ids = np.array([[1, 2, 3], [1, 2, 0], [4, 0, 0]], dtype)
    tree = ProcessTree.from_padded(ids, [3, 2, 0])
    assert tree.set_sizes().tolist() == [[2, 2, 1], [2, 2, 0], [0, 0, 0]]


def test_off_by_one_prefix_is_caught() -> None:
    """The planted fault: a reference that compares t tokens, not t + 1, must not pass."""

    class OffByOne(ReferenceGroup):
        def process_set(self, i: int, t: int) -> frozenset[int]:
            return frozenset(j for j in range(len(self.completions)) if self.shares_prefix(i, j, t))

    with pytest.raises(AssertionError):
        assert_equals_reference(ProcessTree.build([[1, 2], [1, 3]]), OffByOne([[1, 2], [1, 3]]))


@pytest.mark.parametrize(
    ("completions", "message"),
    [
        ([], "at least one completion"),
        ([[1], [[1, 2], [3, 4]]], r"completion #1: .* shape \(2, 2\); for a padded .* from_padded"),
        ([[1], [2], 3], r"completion #2: .* shape \(\)"),
        ([[1], [2, -3]], r"completion #1, token #1: id -3 is outside"),
        ([[1], [], [2**31]], r"completion #2, token #0: id 2147483648"),
        ([[1], np.array([2**64 - 1], np.uint64)], r"completion #1, token #0"),
        ([[1], [2.0]], "completion #1: expected integer token ids, got dtype float64"),
        ([[1], [True]], "completion #1: .* got dtype bool"),
        ([[1], ["a"]], "completion #1: expected integer"),
        ([[1], [[1], [2, 3]]], "completion #1: expected a 1-D sequence"),
        ([[1], None], "completion #1"),
    ],
)
def test_bad_completions(completions: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ProcessTree.build(completions)


def test_bad_ids_and_lengths() -> None:
    with pytest.raises(InputError, match="contexts: expected 2 ids .* got 1"):
        ProcessTree.build([[1], [2]], contexts=["a"])
    with pytest.raises(InputError, match="group_ids: expected hashable ids"):
        ProcessTree.build_many([[1], [2]], [[], []])
    with pytest.raises(InputError, match=r"ids: expected a \(G, T\) array, got shape \(2,\)"):
        ProcessTree.from_padded([1, 2], [1])
    with pytest.raises(InputError, match="row #1 has length 3, expected 0 to 2"):
        ProcessTree.from_padded([[1, 2], [3, 4]], [1, 3])
    with pytest.raises(InputError, match=r"lengths: expected 2 integers .* dtype float64"):
        ProcessTree.from_padded([[1, 2], [3, 4]], [1.0, 2.0])
    with pytest.raises(InputError, match=r"mask: expected shape \(1, 2\)"):
        ProcessTree.build([[1, 2]]).policy_tokens([[1]])
