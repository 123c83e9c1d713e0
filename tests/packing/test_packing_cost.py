"""The estimate, by hand and in tendency."""

from types import SimpleNamespace

import numpy as np
import pytest
from tiny_models import make_model

from lambda_grpo import ProcessTree
from lambda_grpo.packing import join, pack
from lambda_grpo.packing.cost import row_work, tree_work

CONFIG = SimpleNamespace(
    model_type="qwen2", num_hidden_layers=2, hidden_size=8, num_attention_heads=2, num_key_value_heads=1,
    intermediate_size=16, vocab_size=10,
)  # fmt: skip
# a layer's weights: 8·8 (q) + 2·8·4 (k, v) + 8·8 (o) + 3·8·16 (gate, up, down) = 576


def test_by_hand() -> None:
    packed = pack(
        [1, 2], ProcessTree.build([[3, 4, 5], [3, 4]])
    )  # four of five unique tokens run; rows of 5 and 4
    tree, rows = tree_work(packed, CONFIG), row_work(packed, CONFIG)
    assert (tree.linear, rows.linear) == (6 * 2 * 576 * 4, 6 * 2 * 576 * 10)
    assert (tree.attention, rows.attention) == (28 * 8 * 2 * 10, 28 * 8 * 2 * 50)  # 4·5/2; two padded squares
    assert (tree.head, rows.head) == (pytest.approx(10.8 * 80 * 3), pytest.approx(10.8 * 80 * 5))
    assert (tree.other, rows.other) == (1200 * 2 * 8 * 4, 1200 * 2 * 8 * 10)
    assert tree.pieces == rows.pieces == 2  # one chain in each of two layers
    assert row_work(packed, CONFIG, projected=10).head == pytest.approx(10.8 * 80 * 10)
    assert rows.seconds(1e9) == pytest.approx((rows.flops + rows.other) / 1e9 + 2 * 160e-6)


def test_more_sharing_gains_more() -> None:
    rng = np.random.default_rng(0)
    config = SimpleNamespace(
        **{**vars(CONFIG), "hidden_size": 256, "intermediate_size": 512, "vocab_size": 5000}
    )
    gains = []
    for shared in (0, 40, 80, 100):
        rows = rng.integers(0, 5000, (16, 100))
        rows[:, :shared] = rows[0, :shared]
        packed = pack([1], ProcessTree.build(rows))
        gains.append(row_work(packed, config).seconds(1e10) / tree_work(packed, config).seconds(1e10))
    assert gains == sorted(gains)
    assert 0.9 < gains[0] < 1.1
    assert gains[-1] > 8


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "qwen3-moe"])
def test_real_configs(family: str) -> None:
    groups = [pack([1, 2], ProcessTree.build([[3, 4, 5], [3, 4]]))] * 2
    model = make_model(family)
    work = tree_work(join(groups), model.config)
    if family in ("gpt2", "llama"):
        named = [(name, p) for name, p in model.named_parameters() if p.ndim == 2]
        weights = sum(p.numel() for name, p in named if "layers." in name or ".h." in name)
        assert work.linear == 6 * weights * 8
    assert 0 < work.seconds(1e11) < row_work(join(groups), model.config).seconds(1e11) * 10
