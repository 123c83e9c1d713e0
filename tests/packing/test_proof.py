"""The proof passes what is right in every precision, and sees a wrong mask; and the fit of costs, by hand."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import make_model

from lambda_grpo.packing import PackedTree, tree_logps
from lambda_grpo.packing.cost import Calibration, WayCost
from lambda_grpo.packing.proof import (
    Outcome,
    PaddedRows,
    Proof,
    exact_copy,
    exact_outcome,
    outcome,
    parameters_of,
    prove,
    some_parameters,
)
from lambda_grpo.packing.rows import pack_rows

PROMPT, WIDTH = 5, 12


def make_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Six completions of one prompt that part after 3, 5, 7 … tokens; no padding."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 13, (6, PROMPT + WIDTH))
    for i in range(1, 6):
        ids[i, : PROMPT + 1 + 2 * (i % 5)] = ids[0, : PROMPT + 1 + 2 * (i % 5)]
    return torch.from_numpy(ids), torch.ones(6, PROMPT + WIDTH, dtype=torch.long)


def plain_logps(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, attention_mask=mask).logits[:, PROMPT - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, ids[:, PROMPT:, None])[..., 0]


def with_fault(packed: PackedTree, precise: bool) -> PackedTree:
    """In float32 one pair too many: the end of a branch is seen by the token after it. In 16 bits that drowns in
    rounding; there each token sees all before it."""
    end = packed.subtree_end.clone()
    leaf = int((end[:-1] == torch.arange(1, len(end))).nonzero()[0])
    end[leaf] += 1
    return replace(packed, subtree_end=end if precise else torch.full_like(end, len(end)))


def proof_of(family: str, precision: str, fault: bool, exact: bool = True) -> Proof:
    model = make_model(family)
    model = model.to(
        {"bf16 weights": torch.bfloat16, "fp16 weights": torch.float16}.get(precision, torch.float32)
    )
    narrow = {"bf16 autocast": torch.bfloat16, "fp16 autocast": torch.float16}.get(precision)
    context = torch.autocast("cpu", narrow) if narrow else nullcontext()
    ids, mask = make_rows()
    packed = pack_rows(ids, mask, WIDTH)
    packed = with_fault(packed, precision == "float32") if fault else packed
    real, names = mask[:, PROMPT:].bool(), some_parameters(model)
    with context:
        ours = outcome(lambda: tree_logps(model, packed), real, parameters_of(model, names))
        plain = outcome(lambda: plain_logps(model, ids, mask), real, parameters_of(model, names))
    if not exact:
        return prove(plain, ours, None)
    assert (exact_copy(model) is model) == ("weights" not in precision)
    return prove(plain, ours, exact_outcome(model, PaddedRows(ids, mask, WIDTH), 1.0, names))


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma2", "gpt2"])
@pytest.mark.parametrize(
    "precision", ["float32", "bf16 weights", "fp16 weights", "bf16 autocast", "fp16 autocast"]
)
def test_what_is_right_passes_and_a_wrong_mask_does_not(family: str, precision: str) -> None:
    right, wrong = proof_of(family, precision, fault=False), proof_of(family, precision, fault=True)
    assert right.holds, str(right)
    assert not wrong.holds, str(wrong)
    assert "gradients" in str(wrong)


def test_without_room_for_an_exact_copy() -> None:
    assert proof_of("qwen2", "bf16 weights", fault=False, exact=False).holds
    assert not proof_of("qwen2", "bf16 weights", fault=True, exact=False).holds


def test_the_exact_pass_leaves_padding_out() -> None:
    """Rows of several lengths, padded on both sides, and one without a completion."""
    ids, mask = make_rows()
    ids, mask = (torch.nn.functional.pad(x, (2, 3), value=0) for x in (ids, mask))
    mask[1, -5:] = 0
    mask[2, -WIDTH - 3 :] = 0
    rows = PaddedRows(ids, mask, WIDTH + 3)
    model = make_model("gpt2")
    names = some_parameters(model)
    exact = exact_outcome(model, rows, 0.7, names)
    packed = pack_rows(ids, mask, WIDTH + 3)
    ours = outcome(lambda: tree_logps(model, packed, temperature=0.7), rows.real, parameters_of(model, names))
    assert exact is not None
    assert max(ours.error(exact)) < 1e-6


def test_errors_by_hand() -> None:
    exact = Outcome(torch.zeros(4), [torch.tensor([3.0, 4.0])])
    plain = Outcome(torch.tensor([0.1, -0.1, 0.1, -0.1]), [torch.tensor([3.0, 3.5])])
    packed = Outcome(torch.tensor([0.2, -0.2, 0.2, -0.2]), [torch.tensor([3.0, 5.0])])
    assert plain.error(exact) == pytest.approx((0.1, 0.1))  # 0.5 of 5
    proof = prove(plain, packed, exact)
    assert proof.packed == pytest.approx((0.2, 0.2))
    assert proof.allowed == pytest.approx((0.2002, 0.202))
    assert proof.holds
    assert not replace(proof, packed=(0.2, 0.21)).holds
    assert not replace(proof, packed=(float("nan"), 0.1)).holds


def test_without_gradients() -> None:
    """Sharded weights: log-probs alone."""
    ids, mask = make_rows()
    model = make_model("qwen2")
    found = outcome(lambda: plain_logps(model, ids, mask), mask[:, PROMPT:].bool(), [])
    assert not found.logps.requires_grad
    assert found.error(found) == (0.0, 0.0)


def test_a_fit() -> None:
    """What several updates tell apart is found; what they do not keeps the guess's proportions."""
    one = WayCost.fitted([(1.0, 1.0)], [3.0])
    assert one.seconds(2.0, 0.0) == pytest.approx(3.0, rel=0.02)
    assert one.seconds(1.0, 1.0) == pytest.approx(3.0)
    made = WayCost(0.5, 1.0, 0.25)
    guesses = [(1.0, 0.5), (2.0, 1.0), (2.0, 6.0)]
    found = WayCost.fitted(guesses, [made.seconds(*guess) for guess in guesses])
    for guess in [*guesses, (2.0, 3.0), (1.5, 0.0)]:
        assert found.seconds(*guess) == pytest.approx(made.seconds(*guess), rel=0.03)
    noisy = WayCost.fitted([(1.0, 1.0), (2.0, 2.0)], [0.1, 4.0])
    assert noisy.fixed == 0  # not negative
    assert noisy.seconds(2.0, 2.0) == pytest.approx(4.0)


def test_a_calibration_is_read_as_it_was_written() -> None:
    found = Calibration(1e9, WayCost(0.5, 1.0, 0.7), WayCost(0.1, 2.0))
    assert Calibration.from_numbers(found.as_numbers()) == found
    before = {
        "flops_per_second": 1e9,
        "rows": {"fixed": 0.5, "factor": 1.0},
        "tree": {"fixed": 0.1, "factor": 2.0},
    }
    assert Calibration.from_numbers(before).tree == WayCost(0.1, 2.0)
