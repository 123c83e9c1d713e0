"""Theorem: piece-wise tree attention equals attention with the literal N×N mask, in value and gradient."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make_model

from lambda_grpo.packing import attention
from lambda_grpo.packing.attention import (
    TreeLayout,
    TreeMask,
    dense_attention,
    plan,
    tree_attention,
)
from lambda_grpo.packing.attention.pieces import ScoreRule
from lambda_grpo.packing.attention.plan import (
    MAX_MASKED_ROWS,
    Block,
    Limits,
    plan_attention,
    planned_size,
)
from lambda_grpo.packing.attention.switching import use_tree_attention

ALWAYS, NEVER = 10**9, 0  # fixed cost of a piece: join all short chains, or none


def layout_of(parents: list[int]) -> TreeLayout:
    """By hand: parents[i] < i in depth-first order, -1 for a root."""
    end, position = list(range(1, len(parents) + 1)), []
    for parent in parents:
        position.append(0 if parent < 0 else position[parent] + 1)
    for token in reversed(range(len(parents))):
        if parents[token] >= 0:
            end[parents[token]] = max(end[parents[token]], end[token])
    return TreeLayout(torch.tensor(end), torch.tensor(position))


@st.composite
def parents(draw: st.DrawFn) -> list[int]:
    """A forest in depth-first order: each token hangs below the one before it, or below some token above that."""
    result: list[int] = []
    path: list[int] = []
    for run in draw(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6)), min_size=1, max_size=12)):
        back, length = run
        path = path[: max(len(path) - back, 0)] if back < 9 else []
        for _ in range(length):
            result.append(path[-1] if path else -1)
            path.append(len(result) - 1)
    return result


def make_inputs(n: int, heads: int, shared: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    shapes = [(heads, 6), (heads // shared, 6), (heads // shared, 6)]
    return [
        torch.randn(1, n, h, d, generator=generator).to(dtype).transpose(1, 2).requires_grad_()
        for h, d in shapes
    ]


def value_and_gradients(
    function: Callable[..., torch.Tensor], inputs: list[torch.Tensor]
) -> list[torch.Tensor]:
    out = function(*inputs)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view(out.shape)
    return [out, *torch.autograd.grad((out * weights).sum(), inputs)]


def largest_error(
    layout: TreeLayout, mask: torch.Tensor, window: int | None, scores: ScoreRule, shared: int = 1
) -> float:
    inputs = make_inputs(len(mask), 4, shared)
    ours = value_and_gradients(lambda *x: tree_attention(*x, TreeMask(layout, window), scores), inputs)
    literal = value_and_gradients(lambda *x: dense_attention(*x, mask, scores), inputs)
    return max(float((a - b).detach().abs().max()) for a, b in zip(ours, literal, strict=True))


@settings(max_examples=120, deadline=None)
@given(
    parents(), st.sampled_from([None, 1, 2, 5, 9]), st.sampled_from([None, 1.5]), st.sampled_from([1, 2, 4]),
    st.sampled_from([NEVER, 20, ALWAYS]), st.sampled_from([2, 3, 256]),
)  # fmt: skip
def test_random_trees(
    tree: list[int], window: int | None, softcap: float | None, shared: int, cost: int, rows: int
) -> None:
    layout = layout_of(tree)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_PIECE_COST", cost * 24)
        patch.setattr(attention, "_STORED_ROWS", rows)
        patch.setattr(plan, "WINDOW_ROWS", rows)
        error = largest_error(layout, layout.mask(window), window, ScoreRule(0.4, softcap), shared)
    assert error < 1e-12


def test_the_mask_by_hand() -> None:
    # prompt 0 1; 2 below 1; 3 and 4 below 2; 5 below 1; a second group 6 7
    layout = layout_of([-1, 0, 1, 2, 2, 1, -1, 6])
    assert layout.subtree_end.tolist() == [6, 6, 5, 4, 5, 6, 8, 8]
    expected = [
        "1.......",
        "11......",
        "111.....",
        "1111....",
        "111.1...",
        "11...1..",
        "......1.",
        "......11",
    ]
    assert layout.mask().tolist() == [[c == "1" for c in row] for row in expected]
    assert layout.mask(2)[4].tolist() == [False, False, True, False, True, False, False, False]


def num_pairs(plan: Sequence[Block]) -> int:
    """Query-key pairs that a plan computes; half of a causal square, and all of a masked piece."""
    pairs = 0
    for block in plan:
        rows = block.stop - block.start
        for piece in block.pieces:
            pairs += rows * (rows + 1) // 2 if piece.causal else rows * piece.num_keys
    return pairs


@settings(max_examples=100, deadline=None)
@given(
    parents(), st.sampled_from([None, 1, 3, 7]), st.sampled_from([NEVER, 20, ALWAYS]), st.sampled_from([0, 2])
)
def test_a_plan_covers_each_visible_pair_once(
    tree: list[int], window: int | None, cost: int, rows: int
) -> None:
    layout = layout_of(tree)
    n = len(tree)
    plan = plan_attention(
        layout.subtree_end.numpy(), layout.position.numpy(), window, Limits(overhead=cost, max_rows=rows)
    )
    count = np.zeros((n, n), int)
    for block in plan:
        for piece in block.pieces:
            keys = np.concatenate([np.arange(*span) for span in piece.keys])
            queries = np.arange(block.start, block.stop)
            seen = np.ones((len(queries), len(keys)), bool) if piece.mask is None else piece.mask
            count[np.ix_(queries, keys)] += seen & (~np.bool_(piece.causal) | (keys <= queries[:, None]))
    assert (count == layout.mask(window).numpy()).all()
    if cost == NEVER and window is None:
        assert num_pairs(plan) == count.sum()  # no pair is computed in vain
    if window is None and not rows:
        tree = layout.subtree_end.numpy(), layout.position.numpy()
        assert planned_size(*tree, cost) == (num_pairs(plan), sum(len(block.pieces) for block in plan))


def test_there_are_as_many_chains_as_leaves() -> None:
    """However many nodes: 50 tokens, a fork after each, and the first branch of each goes on."""
    stops = [50 + 49 - i for i in range(49)]  # the leaf off token i comes after those off deeper ones
    end, position = np.array([100, *stops, *range(51, 101)]), np.array([*range(50), *range(50, 0, -1)])
    plan = plan_attention(end, position, limits=Limits(NEVER))
    assert [(b.start, b.stop) for b in plan] == [(0, 51), *((i, i + 1) for i in range(51, 100))]


def test_masks_are_bounded() -> None:
    layout = layout_of([-1, *([0] * 3000)])
    plan = plan_attention(layout.subtree_end.numpy(), layout.position.numpy(), limits=Limits(ALWAYS))
    assert max(block.stop - block.start for block in plan) <= MAX_MASKED_ROWS
    assert num_pairs(plan) < 3001 * 3001 / 4


@pytest.mark.parametrize("fault", ["subtree_end", "position", "off by one"])
def test_planted_faults_are_seen(fault: str) -> None:
    tree = [-1, 0, 1, 2, 1, 4, 4, 0, 7, 8, 8]
    layout = layout_of(tree)
    window, mask = 3, layout.mask(3)
    assert largest_error(layout, mask, window, ScoreRule(0.4)) < 1e-12
    if fault == "subtree_end":
        end = layout.subtree_end.clone()
        end[2] += 1  # its subtree swallows a sibling
        wrong = replace(layout, subtree_end=end, _plans={}, _rows={})
    elif fault == "position":
        wrong = replace(
            layout, position=(layout.position - (torch.arange(11) == 6).long()), _plans={}, _rows={}
        )
    else:
        wrong, mask = layout, layout.mask(4)  # a window off by one
    assert largest_error(wrong, mask, window, ScoreRule(0.4)) > 1e-3


def test_float32_and_bfloat16_are_as_good_as_the_dense_mask() -> None:
    generator = np.random.default_rng(0)
    tree = [-1]
    for i in range(1, 400):
        tree.append(i - 1 if generator.random() < 0.95 else tree[i - 1])
    layout = layout_of(tree)
    exact = make_inputs(400, 4, 2)
    truth = value_and_gradients(lambda *x: dense_attention(*x, layout.mask(), ScoreRule(0.4)), exact)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [x.detach().to(dtype).requires_grad_() for x in exact]
        ours = value_and_gradients(
            lambda *x: tree_attention(*x, TreeMask(layout, None), ScoreRule(0.4)), inputs
        )
        dense = value_and_gradients(lambda *x: dense_attention(*x, layout.mask(), ScoreRule(0.4)), inputs)
        for a, b, t in zip(ours, dense, truth, strict=True):
            assert a.dtype == dtype
            assert (a - t).abs().mean() < 1.5 * (b - t).abs().mean() + 1e-9


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (3, 1.5)])
def test_the_mask_of_flex_attention(window: int | None, softcap: float | None) -> None:
    """Its forward: on CPU it has no backward."""
    tree = [-1, *range(60), 5, *range(61, 100), 70, 5, *range(102, 160), -1, 161]
    layout = layout_of(tree)
    inputs = [x.detach().float() for x in make_inputs(len(tree), 4, 2)]
    with torch.no_grad():
        mask = TreeMask(replace(layout, method="flex"), window)
        ours = tree_attention(*inputs, mask, ScoreRule(0.4, softcap))
        literal = dense_attention(*inputs, layout.mask(window), ScoreRule(0.4, softcap))
    assert (ours - literal).abs().max() < 1e-5


@pytest.mark.gpu
def test_on_cuda() -> None:  # pragma: no cover
    layout = layout_of([-1, 0, 1, 2, 1, 4, 4, 0, 7, 8, 8])
    inputs = [x.detach().cuda().requires_grad_() for x in make_inputs(11, 4, 2)]
    mask = TreeMask(TreeLayout(layout.subtree_end.cuda(), layout.position.cuda()), None)
    ours = value_and_gradients(lambda *x: tree_attention(*x, mask, ScoreRule(0.4)), inputs)
    literal = value_and_gradients(
        lambda *x: dense_attention(*x, layout.mask().cuda(), ScoreRule(0.4)), inputs
    )
    for a, b in zip(ours, literal, strict=True):
        assert (a - b).abs().max() < 1e-10


def test_plain_rows_keep_their_dropout() -> None:
    """A model that was switched, and then cannot be packed, runs its rows as SDPA does: same random numbers."""
    ids = torch.arange(12).view(2, 6)
    outcomes = []
    for switched in (False, True):
        model = make_model("qwen2")
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        if switched:
            use_tree_attention(model)
        torch.manual_seed(3)
        outcomes.append([model.train()(ids).logits, model.eval()(ids).logits])
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert torch.equal(outcomes[0][1], outcomes[1][1])
    assert not torch.equal(*outcomes[0])
