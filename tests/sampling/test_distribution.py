"""What `sample` draws has the distribution it should have, by exact enumeration of a tiny model's completions."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from enumerated_completions import END, LENGTH, VOCABULARY, deviations, enumerated, make_model
from torch import Tensor

from lambda_grpo import sampling
from lambda_grpo.sampling import decode, draw, prefill, sample

COUNT = 20_000
PROMPTS = [[1, 2, 3], [1, 2, 0, 0], [3]]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "warm": {"temperature": 1.4},
    "top-k": {"temperature": 0.8, "top_k": 3},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.15, "temperature": 1.2},
    "penalty": {"repetition_penalty": 1.5},
}


def assert_distributed(model: Any, settings: dict[str, Any]) -> None:
    """No prompt's statistic lies beyond six standard deviations: by chance once in 10⁷ tests."""
    samples = sample(
        model, PROMPTS, num_completions=COUNT, max_new_tokens=LENGTH, eos_token_ids=[END], seed_or_generator=11,
        batch_size=8000, **settings,
    )  # fmt: skip
    assert samples.reason == ""
    for i, prompt in enumerate(PROMPTS):
        drawn = samples.completions[i * COUNT : (i + 1) * COUNT]
        assert deviations(Counter(map(tuple, drawn)), enumerated(model, prompt, settings)) < 6


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
