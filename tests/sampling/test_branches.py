"""Forked completions: what they share, how they are distributed, and that a forked cache is the right one."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from enumerated_completions import END, LENGTH, deviations, enumerated
from enumerated_completions import make_model as letters_model
from tiny_models import FAMILIES, VOCABULARY, make_model
from transformers import MambaConfig, MambaForCausalLM

from lambda_grpo import InputError, sampling
from lambda_grpo.branching import BranchPlan
from lambda_grpo.sampling import Samples, decode, sample

PLAN = BranchPlan((2, 5), (2, 2))
PROMPTS = [[3, 1, 4], [3, 1, 4, 1, 5, 9], [2]]
G, NEW = 8, 9


def branched(model: Any, **settings: Any) -> Samples:
    given = {"num_completions": G, "max_new_tokens": NEW, "eos_token_ids": [0], "seed_or_generator": 3}
    return sample(model, PROMPTS, branches=PLAN, logprobs=True, **given | settings)


def full_logps(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    with torch.no_grad():
        scores = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return scores.gather(-1, torch.tensor(completion)[:, None])[:, 0]


def assert_forked(model: Any, samples: Samples, tolerance: float = 2e-5) -> None:
    """Rows of a block share their tokens; each row's log-probs are those of a pass over it alone."""
    blocks = PLAN.blocks(G, NEW)
    told = set()
    for i, (completion, logps) in enumerate(zip(samples.completions, samples.logps, strict=True)):
        group, slot = divmod(i, G)
        expected = full_logps(model, PROMPTS[group], completion)
        assert np.allclose(logps, expected.numpy(), atol=tolerance)
        for t in range(len(completion)):
            first = group * G + int(np.flatnonzero(blocks[:, t] == blocks[slot, t])[0])
            assert samples.completions[first][: t + 1] == completion[: t + 1]
            told.add((group, int(blocks[slot, t]), t))
    assert samples.sampled_tokens == len(told)


@pytest.mark.usefixtures("prefixes")
@pytest.mark.parametrize("family", FAMILIES)
def test_forked_caches_are_those_of_a_full_pass(family: str) -> None:
    model = make_model(family)
    assert_forked(model, branched(model))


@pytest.mark.usefixtures("prefixes")
def test_rows_wait_for_room_and_come_to_the_same() -> None:
    model = make_model("llama")
    whole = branched(model)
    for room in ({"batch_size": 8}, {"batch_size": 4}, {"cached_tokens": 4 * (6 + NEW)}):
        assert branched(model, **room).completions == whole.completions


def plant_wrong_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = decode.Decoder._copy

    def of_others(self: decode.Decoder, at: np.ndarray, new: np.ndarray, size: int) -> None:
        copy(self, np.roll(at, 1), new, size)

    monkeypatch.setattr(decode.Decoder, "_copy", of_others)


def test_the_first_forks_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where samples without forks came before, as with `auto` or a validation."""
    model = make_model("llama")
    sample(model, PROMPTS, num_completions=G, max_new_tokens=NEW, eos_token_ids=[0], seed_or_generator=3)
    plant_wrong_forks(monkeypatch)
    with pytest.raises(InputError, match="log-probs"):
        branched(model)


def test_wrong_forks_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    assert_forked(model, branched(model))  # the trial of a model's first samples is over
    plant_wrong_forks(monkeypatch)
    monkeypatch.setattr(sampling, "check_samples", lambda *_: None)  # which would refuse them
    with pytest.raises(AssertionError):
        assert_forked(model, branched(model))


def pairs(model: Any, prompt: list[int], depth: int) -> dict[tuple[int, ...], float]:
    """Two completions that share their first `depth` tokens, written one after the other, and the probability."""
    alone = enumerated(model, prompt, {})
    found: dict[tuple[int, ...], float] = {}
    trunk: dict[tuple[int, ...], float] = {}
    for ids, probability in alone.items():
        trunk[ids[:depth]] = trunk.get(ids[:depth], 0) + probability
    for a, chance_a in alone.items():
        for b, chance_b in alone.items():
            if a[:depth] != b[:depth]:
                continue
            if a == b and len(a) <= depth and a[-1] == END:
                found[a + b] = chance_a  # it ended before the fork: one completion in both places
            else:
                found[a + b] = chance_a * chance_b / trunk[a[:depth]]
    return found


def test_siblings_have_the_joint_distribution() -> None:
    """5,000 groups of 2 roots × 2: siblings share one token and are independent behind it; roots are independent."""
    model, prompt, groups = letters_model(), [1, 2, 3], 5000
    samples = sample(
        model, [prompt] * groups, num_completions=4, max_new_tokens=LENGTH, eos_token_ids=[END],
        seed_or_generator=5, batch_size=8000, branches=BranchPlan((1,), (2,)),
    )  # fmt: skip
    rows = [samples.completions[i : i + 4] for i in range(0, 4 * groups, 4)]
    siblings = Counter(tuple(a + b) for a, b, _, _ in rows)
    assert deviations(siblings, pairs(model, prompt, 1)) < 6
    roots = Counter(tuple(a + c) for a, _, c, _ in rows)
    alone = enumerated(model, prompt, {})
    independent = {a + b: p * q for a, p in alone.items() for b, q in alone.items()}
    assert deviations(roots, independent) < 6
    assert deviations(Counter(tuple(d) for *_, d in rows), alone) < 6
    with pytest.raises(AssertionError):  # the planted fault: siblings are not independent
        assert deviations(siblings, independent) < 6


def test_greedy_branches_are_all_the_same() -> None:
    model = make_model("llama")
    rows = branched(model, temperature=0).completions
    assert all(rows[i] == rows[i - i % G] for i in range(len(rows)))


def mamba() -> Any:
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1)).eval()


@pytest.mark.parametrize(
    ("make", "wrong", "said"),
    [
        (mamba, {}, "this model cannot fork"),
        (None, {"num_completions": 6}, "does not divide the 6 completions"),
        (None, {"num_completions": 4}, "one root"),
        (None, {"max_new_tokens": 5}, "not below max_completion_length 5"),
        (None, {"batch_size": 3}, "at least 4, the rows of a root"),
        (None, {"cached_tokens": 20}, "the completions of one root of prompt #0 may need"),
    ],
)
def test_what_cannot_branch(make: Callable[[], Any] | None, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        branched(make() if make else make_model("llama"), **wrong)
