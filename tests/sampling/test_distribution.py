"""What `sample` draws has the distribution it should have, by exact enumeration of a tiny model's completions."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lambda_grpo import sampling
from lambda_grpo.sampling import decode, draw, prefill, sample

VOCABULARY, END, LENGTH, COUNT = 5, 4, 3, 20_000
PROMPTS = [[1, 2, 3], [1, 2, 0, 0], [3]]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "warm": {"temperature": 1.4},
    "top-k": {"temperature": 0.8, "top_k": 3},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.15, "temperature": 1.2},
    "penalty": {"repetition_penalty": 1.5},
}


def make_model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.4, pad_token_id=0, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def next_token(
    logits: Tensor, seen: list[int], *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
    min_p: float = 0.0, repetition_penalty: float = 1.0,
) -> Tensor:  # fmt: skip
    """(V,) the probabilities by the literal definitions, in float64."""
    z = logits.double()
    for token in set(seen):
        z[token] = z[token] / repetition_penalty if z[token] > 0 else z[token] * repetition_penalty
    p = (z / temperature).softmax(0)
    order = p.argsort(descending=True).tolist()
    kept = set(order[: top_k or VOCABULARY])
    p = torch.tensor([float(p[i]) if i in kept else 0.0 for i in range(VOCABULARY)], dtype=torch.float64)
    p /= p.sum()
    before = 0.0
    for token in order:  # the fewest likely tokens that together reach top_p
        probability = float(p[token])
        if before >= top_p or probability < min_p * float(p.max()):
            p[token] = 0
        before += probability
    return p / p.sum()


def enumerated(model: Any, prompt: list[int], settings: dict[str, Any]) -> dict[tuple[int, ...], float]:
    """Every completion and its probability."""
    found: dict[tuple[int, ...], float] = {}
    begun: dict[tuple[int, ...], float] = {(): 1.0}
    for length in range(1, LENGTH + 1):
        further: dict[tuple[int, ...], float] = {}
        for ids, probability in begun.items():
            seen = prompt + list(ids)
            with torch.no_grad():
                p = next_token(model(torch.tensor([seen])).logits[0, -1], seen, **settings)
            for token in range(VOCABULARY):
                ends = token == END or length == LENGTH
                (found if ends else further)[(*ids, token)] = probability * float(p[token])
        begun = further
    assert math.isclose(sum(found.values()), 1)
    return {ids: probability for ids, probability in found.items() if probability > 0}


def chi_square(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> tuple[float, int]:
    """The statistic and its degrees of freedom; completions expected fewer than 5 times are taken together."""
    assert set(counts) <= set(expected)
    total = sum(counts.values())
    common = [ids for ids in expected if expected[ids] * total >= 5]
    pairs = [(counts[ids], expected[ids] * total) for ids in common]
    rest = total - sum(want for _, want in pairs)
    if rest > 1:
        pairs.append((total - sum(got for got, _ in pairs), rest))
    return sum((got - want) ** 2 / want for got, want in pairs), len(pairs) - 1


def assert_distributed(model: Any, settings: dict[str, Any]) -> None:
    """No prompt's statistic lies beyond six standard deviations: by chance once in 10⁷ tests."""
    samples = sample(
        model, PROMPTS, num_completions=COUNT, max_new_tokens=LENGTH, eos_token_ids=[END], seed_or_generator=11,
        batch_size=8000, **settings,
    )  # fmt: skip
    assert samples.reason == ""
    for i, prompt in enumerate(PROMPTS):
        drawn = samples.completions[i * COUNT : (i + 1) * COUNT]
        statistic, freedom = chi_square(Counter(map(tuple, drawn)), enumerated(model, prompt, settings))
        # Wilson and Hilferty: the cube root of chi-square over its degrees of freedom is near normal.
        spread = 2 / (9 * freedom)
        assert ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread) < 6


@pytest.mark.parametrize("name", SETTINGS)
def test_the_distribution(name: str) -> None:
    assert_distributed(make_model(), SETTINGS[name])


def rolled(fan_out: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, packed: fan_out(self, packed).roll(7, dims=0)


@pytest.mark.parametrize("fault", ["cache", "filter", "numbers"])
def test_a_wrong_distribution_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dict(SETTINGS["top-p"])
    model = make_model()
    monkeypatch.setattr(sampling, "check_samples", lambda *_: None)
    if fault == "cache":
        monkeypatch.setattr(prefill.Prefilled, "_fan_out", rolled(prefill.Prefilled._fan_out))
    elif fault == "filter":
        monkeypatch.setattr(draw.DrawSettings, "processors", lambda _: [])
    else:  # the second token's number is the first one's
        uniform = decode.Request.uniform
        monkeypatch.setattr(decode.Request, "uniform", lambda self, row: uniform(self, row)[[0, 0, 1]])
    with pytest.raises(AssertionError):
        assert_distributed(model, settings)


def test_equal_chances_of_neighbours() -> None:
    """The draw alone, where a probability is 0 and where u is at its ends."""
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, math.log(3), -torch.inf]])
    for u, token in [(0.0, 1), (0.2499, 1), (0.2501, 3), (1 - 2**-53, 3)]:
        assert draw.choose(scores, torch.tensor([u], dtype=torch.float64)).item() == token


def test_enumeration_is_of_all_completions() -> None:
    expected = enumerated(make_model(), [3], {})
    open_ended = [ids for ids in itertools.product(range(VOCABULARY), repeat=LENGTH) if END not in ids[:-1]]
    assert set(expected) == {*open_ended, (END,), *((token, END) for token in range(VOCABULARY - 1))}
