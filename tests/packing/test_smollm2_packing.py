"""The theorem on a real language model: a packed row of SmolLM2-135M gives what its completions' own rows give.

Log-probs, and the gradients of all parameters, are compared with a pass of higher precision. The packed row may
err as plain rows do, times a factor: float32 is judged by float64, and bfloat16 by float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_groups import Groups, gradients, packed_of

from lambda_grpo.branching import BranchPlan
from lambda_grpo.evaluating.completions import encode
from lambda_grpo.packing import PackedTree, tree_logps
from lambda_grpo.policy import load_policy
from lambda_grpo.sampling import sample

pytestmark = pytest.mark.slow

QUESTIONS = [f"Which number is the largest: {numbers}?" for numbers in ("18, 59, 44, 69", "71, 32, 90, 15")]
SYSTEM_PROMPT = "You answer with one sentence."
COMPLETIONS = 4
NEW_TOKENS = 24
FACTOR = 2.0


@dataclass(frozen=True)
class Pass:
    """(R, T) log-probs, and the gradient of each parameter."""

    logps: torch.Tensor
    gradients: Sequence[torch.Tensor] = ()


@dataclass(frozen=True)
class Errors:
    """Norms of the differences from an exact pass, relative to the exact norms.

    Attributes:
        logps: of all log-probs.
        gradient: of all parameters' gradients together.
        worst: of the parameter with the largest error.
    """

    logps: float
    gradient: float
    worst: float

    @classmethod
    def of(cls, found: Pass, exact: Pass) -> "Errors":
        pairs = list(zip(found.gradients, exact.gradients, strict=True))
        off = torch.stack([(a.double() - b.double()).norm() for a, b in pairs])
        size = torch.stack([b.double().norm() for _, b in pairs])
        logps = (found.logps.double() - exact.logps.double()).norm() / exact.logps.double().norm()
        return cls(float(logps), float(off.norm() / size.norm()), float((off / size).max()))

    def __le__(self, other: "Errors") -> bool:
        names = ("logps", "gradient", "worst")
        return all(getattr(self, name) <= FACTOR * getattr(other, name) for name in names)


@pytest.fixture(scope="module")
def groups(smollm2_folder: Path) -> Groups:
    """Two questions, asked as a chat, and four answers of the model itself to each, two from each beginning."""
    model, tokenizer = load_policy(str(smollm2_folder))
    system = {"role": "system", "content": SYSTEM_PROMPT}
    prompts = [encode(tokenizer, [system, {"role": "user", "content": text}]) for text in QUESTIONS]
    rows = sample(
        model.eval(), prompts, num_completions=COMPLETIONS, max_new_tokens=NEW_TOKENS, temperature=0.75,
        eos_token_ids=[tokenizer.eos_token_id], seed_or_generator=0, branches=BranchPlan((8,), (2,)),
    ).completions  # fmt: skip
    return [(prompt, rows[COMPLETIONS * i :][:COMPLETIONS]) for i, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def packed(groups: Groups) -> PackedTree:
    return packed_of(groups)


@pytest.fixture(scope="module")
def plain_float32(smollm2_folder: Path, groups: Groups) -> Pass:
    return plain_pass(smollm2_folder, groups, torch.float32)


def plain_pass(folder: Path, groups: Groups, dtype: torch.dtype) -> Pass:
    """Every completion in a row of its own, behind its prompt. What pads a row comes last, so none sees it."""
    model = load(folder, dtype)
    pairs = [(prompt, row) for prompt, rows in groups for row in rows]
    ids = pad([torch.tensor([*prompt, *row]) for prompt, row in pairs])
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    logps = []
    for states, (prompt, row) in zip(hidden, pairs, strict=True):
        logits = model.lm_head(states[len(prompt) - 1 : len(prompt) + len(row) - 1])
        scores = logits.to(torch.promote_types(dtype, torch.float32)).log_softmax(dim=-1)
        logps.append(scores[range(len(row)), row])
    return Pass(pad(logps).detach(), gradients(model, pad(logps)))


def packed_pass(folder: Path, packed: PackedTree, dtype: torch.dtype) -> Pass:
    model = load(folder, dtype)
    logps = tree_logps(model, packed)
    return Pass(logps.detach(), gradients(model, logps))


def load(folder: Path, dtype: torch.dtype) -> Any:
    return load_policy(str(folder), dtype=torch.float32)[0].to(dtype).eval()


def pad(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def test_float32(smollm2_folder: Path, groups: Groups, packed: PackedTree, plain_float32: Pass) -> None:
    exact = plain_pass(smollm2_folder, groups, torch.float64)
    own = Errors.of(plain_float32, exact)
    found = packed_pass(smollm2_folder, packed, torch.float32)
    assert len(found.gradients) == 272
    assert Errors.of(found, exact) <= own
    # Planted faults: a gradient that is lost, and positions counted along the row in place of the path.
    lost = [torch.zeros_like(g) if i == 100 else g for i, g in enumerate(found.gradients)]
    assert not Errors.of(replace(found, gradients=lost), exact) <= own
    wrong = replace(packed, position=torch.arange(packed.num_tokens))
    with torch.no_grad():
        logps = tree_logps(load(smollm2_folder, torch.float32), wrong)
    assert not Errors.of(replace(found, logps=logps), exact) <= own


def test_bfloat16(smollm2_folder: Path, groups: Groups, packed: PackedTree, plain_float32: Pass) -> None:
    plain = plain_pass(smollm2_folder, groups, torch.bfloat16)
    found = packed_pass(smollm2_folder, packed, torch.bfloat16)
    assert Errors.of(found, plain_float32) <= Errors.of(plain, plain_float32)
