"""The block structure of a tree's attention, against the literal mask; and FlexAttention with it, on a CPU."""

import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention as flex_module
from torch.nn.attention.flex_attention import create_block_mask

from lambda_grpo.packing.attention import TreeLayout, TreeMask, dense_attention, flex, tree_attention
from lambda_grpo.packing.attention.blocks import BLOCK, PaddedTree, block_table, ordered
from lambda_grpo.packing.attention.pieces import ScoreRule

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

PLAIN, CAPPED = ScoreRule(0.4), ScoreRule(0.35, 1.5)


def tree_of(parents: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """subtree_end and position of a forest in depth-first order; -1 for a root."""
    end, position = np.arange(1, len(parents) + 1), np.zeros(len(parents), int)
    for token, parent in enumerate(parents):
        position[token] = 0 if parent < 0 else position[parent] + 1
    for token in reversed(range(len(parents))):
        if parents[token] >= 0:
            end[parents[token]] = max(end[parents[token]], end[token])
    return end, position


def random_tree(n: int, seed: int, forks: float, roots: float = 0.002) -> tuple[np.ndarray, np.ndarray]:
    """After each token the path goes on, or with probability `forks` anew from a token above it, or from a root."""
    rng = np.random.default_rng(seed)
    parents: list[int] = []
    path: list[int] = []
    for token in range(n):
        if rng.random() < roots:
            path = []
        elif path and rng.random() < forks:
            path = path[: rng.integers(1, len(path) + 1)]
        parents.append(path[-1] if path else -1)
        path.append(token)
    return tree_of(parents)


def comb(n: int) -> list[int]:
    """One long path, and a leaf off each of its tokens, the deepest first."""
    half = n // 2
    return [*range(-1, half - 1), *range(half - 1, -1, -1)]


ADVERSARIAL = {
    "one path": [*range(-1, 1023)],
    "one token": [-1],
    "only roots": [-1] * 700,
    "a star": [-1, *[0] * 900],
    "a comb": comb(1400),
    "paths of a block": [-1 if i % BLOCK == 0 else i - 1 for i in range(900)],
    "paths of a block and one": [-1 if i % (BLOCK + 1) == 0 else i - 1 for i in range(900)],
    "a path below each of a prompt's tokens": [
        *range(-1, 9),
        *[9 - j // 90 if j % 90 == 0 else 9 + j for j in range(900)],
    ],
}


def literal(tree: PaddedTree, window: int | None) -> np.ndarray:
    index = np.arange(len(tree.end))
    visible = (index <= index[:, None]) & (index[:, None] < tree.end)
    if window is not None:
        visible &= tree.position[:, None] - tree.position < window
    return visible


def assert_literal(end: np.ndarray, position: np.ndarray, window: int | None, block: int = BLOCK) -> None:
    tree = PaddedTree.of(end, position, block)
    count = len(tree.end) // block
    blocks = literal(tree, window).reshape(count, block, count, block)
    table = block_table(tree, window, block)
    assert (table.some == blocks.any((1, 3))).all()
    assert (table.full == blocks.all((1, 3))).all()


def test_by_hand() -> None:
    # prompt 0 1; 2 3 and 4 5 below it; padded to 8 in blocks of two
    tree = PaddedTree.of(np.array([6, 6, 4, 4, 6, 6, 7]), np.array([0, 1, 2, 3, 2, 3, 0]), block=2)
    assert tree.end.tolist() == [6, 6, 4, 4, 6, 6, 7, 8]
    table = block_table(tree, block=2)
    assert table.full.astype(int).tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert table.partial.astype(int).tolist() == np.eye(4, dtype=int).tolist()
    window = block_table(tree, window=2, block=2)  # a token and its parent
    assert not window.full.any()
    assert window.some.astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    number, order = ordered(table.full)
    assert number.tolist() == [0, 1, 1, 0]
    assert order[2].tolist() == [0, 1, 2, 3]


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 90), st.integers(0, 10**6), st.sampled_from([0.02, 0.1, 0.3, 0.6]),
    st.sampled_from([2, 3, 4, 8]), st.sampled_from([None, 1, 2, 3, 5, 9, 20]),
)  # fmt: skip
def test_random_trees_in_small_blocks(
    n: int, seed: int, forks: float, block: int, window: int | None
) -> None:
    assert_literal(*random_tree(n, seed, forks), window, block)


@pytest.mark.parametrize("window", [None, 1, 100, 128, 129, 700])
@pytest.mark.parametrize("tokens", [1000, 4096])
def test_random_trees_in_blocks_of_128(tokens: int, window: int | None) -> None:
    assert_literal(*random_tree(tokens, tokens, forks=0.01), window)


@pytest.mark.parametrize("window", [None, 2, 128, 300])
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_trees(name: str, window: int | None) -> None:
    assert_literal(*tree_of(ADVERSARIAL[name]), window)


def test_a_pair_more_or_less_is_seen() -> None:
    """The planted fault: one token's subtree a token too long or too short, at the edge of a block."""
    path = tree_of(ADVERSARIAL["one path"])
    assert block_table(PaddedTree.of(*path)).full[7, 0]
    path[0][0] -= 1
    assert not block_table(PaddedTree.of(*path)).full[7, 0]
    path[0][128 * 6 - 1] = 128 * 6
    assert block_table(PaddedTree.of(*path)).some[6, 5]
    path[0][128 * 5 : 128 * 6] = 128 * 6
    assert not block_table(PaddedTree.of(*path)).some[6, 5]
    one_path = tree_of(ADVERSARIAL["one path"])
    assert block_table(PaddedTree.of(*one_path), window=256).full[7, 6]  # the farthest pair is 255 apart
    assert not block_table(PaddedTree.of(*one_path), window=255).full[7, 6]


@pytest.mark.parametrize("window", [None, 60, 300])
def test_what_pytorch_makes_from_the_whole_mask(window: int | None) -> None:
    """The lists of blocks, for the forward and for the backward, are those of `create_block_mask`."""
    end, position = random_tree(1500, 3, forks=0.01)
    ours = flex.make_block_mask(torch.from_numpy(end), torch.from_numpy(position), window)
    whole = torch.from_numpy(literal(PaddedTree.of(end, position), window))
    theirs = create_block_mask(lambda b, h, q, k: whole[q, k], None, None, *whole.shape, device="cpu")
    for name in ("kv", "q", "full_kv", "full_q"):
        for part in (f"{name}_num_blocks", f"{name}_indices"):
            assert torch.equal(getattr(ours, part), getattr(theirs, part)), part
    assert ours.shape == theirs.shape


def test_64k_tokens() -> None:
    """Time and memory; seen: 0.04 s and 7 MB on one core. The bounds are far above."""
    end, position = random_tree(65_536, 0, forks=0.01, roots=0.001)
    tensors = torch.from_numpy(end), torch.from_numpy(position)
    flex.make_block_mask(*tensors, None)
    for window in (None, 4096):
        started = time.perf_counter()
        flex.make_block_mask(*tensors, window)
        assert time.perf_counter() - started < 0.6
        tracemalloc.start()
        block_table(PaddedTree.of(end, position), window)
        assert tracemalloc.get_traced_memory()[1] < 50e6
        tracemalloc.stop()


# FlexAttention with these blocks


def make_inputs(n: int, heads: int, shared: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    shapes = [(heads, 16), (heads // shared, 16), (heads // shared, 16)]
    return [torch.randn(1, h, n, d, generator=generator).to(dtype).requires_grad_() for h, d in shapes]


def layout_of(n: int, seed: int = 0) -> TreeLayout:
    return TreeLayout(*(torch.from_numpy(part) for part in random_tree(n, seed, forks=0.01)))


def literal_attention(inputs: list[Any], layout: TreeLayout, window: int | None, rule: ScoreRule) -> Any:
    return dense_attention(*inputs, layout.mask(window), rule)


@pytest.mark.parametrize(("window", "rule"), [(None, PLAIN), (40, CAPPED), (300, PLAIN)])
def test_eager(window: int | None, rule: ScoreRule) -> None:
    layout = layout_of(700)
    with torch.no_grad():
        inputs = make_inputs(700, 4, 2)
        ours = tree_attention(*inputs, TreeMask(replace(layout, method="flex"), window), rule)
        assert (ours - literal_attention(inputs, layout, window, rule)).abs().max() < 1e-5


@pytest.fixture
def compiled_on_cpu() -> Iterator[None]:
    """FlexAttention compiled here as on a device; the compiler starts anew, and its kernels read the blocks."""
    torch._dynamo.reset()
    flex._compiled.cache_clear()
    yield
    torch._dynamo.reset()
    flex._compiled.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "shared", "window"), [(PLAIN, 1, None), (PLAIN, 2, 300), (CAPPED, 2, None), (CAPPED, 1, 40)]
)
@pytest.mark.usefixtures("compiled_on_cpu")
def test_compiled(rule: ScoreRule, shared: int, window: int | None) -> None:
    """One kernel serves all lengths: only the first one is compiled."""
    for n in (300, 1000, 100, 1500):
        layout = layout_of(n, seed=n)
        inputs = [x.detach() for x in make_inputs(n, 4, shared)]
        mask = flex.make_block_mask(layout.subtree_end, layout.position, window)
        padded = [torch.nn.functional.pad(x, (0, 0, 0, mask.shape[-1] - n)) for x in inputs]
        with torch.no_grad(), torch.compiler.set_stance("default" if n == 300 else "fail_on_recompile"):
            ours = flex._compiled(rule)(*padded, mask)[:, :, :n]
        assert (ours - literal_attention(inputs, layout, window, rule)).abs().max() < 1e-5


@pytest.mark.parametrize(("rule", "window"), [(PLAIN, None), (CAPPED, 40)])
def test_the_graph_of_the_backward(
    monkeypatch: pytest.MonkeyPatch, rule: ScoreRule, window: int | None
) -> None:
    """Traced as for a device, forward and backward, and then run without a kernel."""
    monkeypatch.setattr(flex_module, "_validate_device", lambda *_: None)  # it forbids gradients on a CPU
    torch._dynamo.reset()
    attend = torch.compile(flex._with_rule(rule), dynamic=True, fullgraph=True, backend="aot_eager")
    for n in (300, 700):
        layout = layout_of(n, seed=n)
        mask = flex.make_block_mask(layout.subtree_end, layout.position, window)
        inputs = make_inputs(n, 4, 2)
        padded = [torch.nn.functional.pad(x, (0, 0, 0, mask.shape[-1] - n)) for x in inputs]
        with torch._dynamo.config.patch(specialize_float=True):
            ours = attend(*padded, mask)[:, :, :n]
        weights = torch.linspace(-1, 1, ours.numel()).view(ours.shape)
        theirs = literal_attention(inputs, layout, window, rule)
        for a, b in zip(
            torch.autograd.grad((ours * weights).sum(), inputs),
            torch.autograd.grad((theirs * weights).sum(), inputs),
            strict=True,
        ):
            assert (a - b).abs().max() < 1e-4


def read_as_the_kernels_do(inputs: list[Any], grad: Any, mask: Any, scale: float) -> list[Any]:
    """Output, and gradients of q, k and v, from the lists of blocks alone, as FlexAttention's kernels walk them:
    queries of a block over its keys for the output and for q, keys of a block over its queries for k and v."""
    q, k, v = (x[0] for x in inputs)
    out, to_q, to_k, to_v = (torch.zeros_like(x) for x in (q, q, k, v))
    total = torch.zeros(q.shape[:2], dtype=q.dtype)
    index = torch.arange(q.shape[1])

    def blocks(name: str, row: int) -> Iterator[tuple[slice, bool]]:
        for prefix, masked in ((name, True), (f"full_{name}", False)):
            number = getattr(mask, f"{prefix}_num_blocks")[0, 0, row]
            for other in getattr(mask, f"{prefix}_indices")[0, 0, row, :number].tolist():
                yield slice(other * BLOCK, (other + 1) * BLOCK), masked

    def weights(rows: slice, columns: slice, masked: bool) -> Any:
        s = (q[:, rows] @ k[:, columns].mT * scale).exp()
        if masked:
            s = s * mask.mask_mod(None, None, index[rows, None], index[None, columns])
        return s

    count = q.shape[1] // BLOCK
    own = [slice(i * BLOCK, (i + 1) * BLOCK) for i in range(count)]
    for i in range(count):
        for keys, masked in blocks("kv", i):
            p = weights(own[i], keys, masked)
            total[:, own[i]] += p.sum(-1)
            out[:, own[i]] += p @ v[:, keys]
    out /= total[..., None]
    delta = (grad * out).sum(-1, keepdim=True)

    def slopes(rows: slice, columns: slice, masked: bool) -> tuple[Any, Any]:
        p = weights(rows, columns, masked) / total[:, rows, None]
        return p, p * (grad[:, rows] @ v[:, columns].mT - delta[:, rows]) * scale

    for i in range(count):
        for keys, masked in blocks("kv", i):
            to_q[:, own[i]] += slopes(own[i], keys, masked)[1] @ k[:, keys]
        for queries, masked in blocks("q", i):
            p, s = slopes(queries, own[i], masked)
            to_k[:, own[i]] += s.mT @ q[:, queries]
            to_v[:, own[i]] += p.mT @ grad[:, queries]
    return [out, to_q, to_k, to_v]


@pytest.mark.parametrize("window", [None, 40, 300])
def test_the_lists_give_output_and_gradients(window: int | None) -> None:
    n = 1000
    layout = layout_of(n)
    mask = flex.make_block_mask(layout.subtree_end, layout.position, window)
    inputs = make_inputs(n, 2, 1, torch.float64)
    theirs = literal_attention(inputs, layout, window, PLAIN)
    weights = torch.linspace(-1, 1, theirs.numel(), dtype=torch.float64).view(theirs.shape)
    wanted = [theirs, *torch.autograd.grad((theirs * weights).sum(), inputs)]
    space = (0, 0, 0, mask.shape[-1] - n)
    padded = [torch.nn.functional.pad(x.detach(), space) for x in inputs]
    found = read_as_the_kernels_do(padded, torch.nn.functional.pad(weights[0], space), mask, PLAIN.scale)
    for a, b in zip(found, wanted, strict=True):
        assert (a[:, :n] - b[0]).abs().max() < 1e-10
    mask.q_num_blocks -= 1  # the planted fault: the backward's lists end too early
    faulty = read_as_the_kernels_do(padded, torch.nn.functional.pad(weights[0], space), mask, PLAIN.scale)
    assert (faulty[2][:, :n] - wanted[2][0]).abs().max() > 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize(("window", "rule"), [(None, PLAIN), (40, CAPPED), (300, PLAIN)])
def test_compiled_on_a_device(window: int | None, rule: ScoreRule) -> None:  # pragma: no cover
    """Output and gradients of the compiled kernels."""
    layout = layout_of(1500)
    inputs = [x.detach().cuda().requires_grad_() for x in make_inputs(1500, 4, 2)]
    there = TreeLayout(layout.subtree_end.cuda(), layout.position.cuda(), method="flex")
    found = []
    for out in (
        tree_attention(*inputs, TreeMask(there, window), rule),
        dense_attention(*inputs, there.mask(window), rule),
    ):
        weights = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
        found.append([out, *torch.autograd.grad((out * weights).sum(), inputs)])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() < 1e-3 * b.abs().max()
