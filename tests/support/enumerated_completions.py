"""A tiny model whose completions can all be gone through, each with its probability, and a test of what was
drawn."""

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY, END, LENGTH = 5, 4, 3


def make_model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.4,
        pad_token_id=0, bos_token_id=None, eos_token_id=None,
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


def deviations(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """The statistic in standard deviations: more than six happen by chance once in 10⁷ tests.

    Wilson and Hilferty: the cube root of chi-square over its degrees of freedom is near normal.
    """
    statistic, freedom = chi_square(counts, expected)
    spread = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
