"""Logits → the next token of each row, and its log-prob.

Filters and penalties are transformers' own logits processors, in the order in which `generate` applies them.
The draw itself differs: it takes one uniform number u per row and token, and the first token whose cumulative
probability exceeds u. `torch.multinomial` draws a number for every token of the vocabulary.

R is the number of rows, V the size of the vocabulary, W the number of columns.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lambda_grpo.errors import expect

_DRAWN_LOGITS = 2**22  # probabilities at a time, which bounds what the draw needs beside the logits
_PART = 256  # tokens whose probabilities are summed first: only one part is then summed token by token


@dataclass(frozen=True)
class DrawSettings:
    """How a token is drawn; each means what it means in `transformers.GenerationConfig`.

    Attributes:
        temperature: 0 takes the most likely token.
        top_k: 0 for all tokens.
        min_p: None or 0 for all tokens.

    Raises:
        InputError: a number out of its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        finite = math.isfinite(self.temperature)
        expect(
            finite and self.temperature >= 0, "temperature", self.temperature, "a number, 0 (greedy) or above"
        )
        expect(0 < self.top_p <= 1, "top_p", self.top_p, "above 0, at most 1")
        expect(self.top_k >= 0, "top_k", self.top_k, "at least 0 (0: all tokens)")
        expect(self.min_p is None or 0 <= self.min_p <= 1, "min_p", self.min_p, "from 0 to 1, or None")
        expect(self.repetition_penalty > 0, "repetition_penalty", self.repetition_penalty, "above 0")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0

    @property
    def penalises(self) -> bool:
        """Whether the tokens so far matter to the next one's scores."""
        return self.repetition_penalty != 1

    def processors(self) -> LogitsProcessorList:
        """transformers' logits processors."""
        found = LogitsProcessorList()
        if self.penalises:
            found.append(RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty)))
        if self.greedy:
            return found
        if self.temperature != 1:
            found.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k > 0:
            found.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            found.append(TopPLogitsWarper(float(self.top_p)))
        if self.min_p:
            found.append(MinPLogitsWarper(float(self.min_p)))
        return found


def draw(logits: Tensor, settings: DrawSettings, uniform: Tensor, ids: Tensor | None = None) -> Tensor:
    """(R,) the next token of each row.

    Args:
        logits: (R, V) float32, left as they are.
        settings: how to draw.
        uniform: (R,) float64 in [0, 1), one number a row; greedy ones do not look at it.
        ids: (R, W) the tokens so far, where a repetition penalty looks at them; None: there is none.
    """
    processors = settings.processors()
    rows = max(1, _DRAWN_LOGITS // logits.shape[1])
    tokens = []
    for at in (slice(i, i + rows) for i in range(0, len(logits), rows)):
        scores = logits[at]
        if len(processors):
            scores = processors(ids[at] if ids is not None else None, scores.clone())
        tokens.append(scores.argmax(dim=-1) if settings.greedy else choose(scores, uniform[at]))
    return torch.cat(tokens)


def choose(scores: Tensor, uniform: Tensor) -> Tensor:
    """(R,) the first token whose cumulative probability exceeds u; one of probability 0 never does.

    >>> choose(torch.tensor([[0.0, -torch.inf, 0.0]] * 2), torch.tensor([0.49, 0.51], dtype=torch.float64))
    tensor([0, 2])
    """
    chances = scores.softmax(dim=-1)
    chances = functional.pad(chances, (0, -chances.shape[1] % _PART)).view(len(chances), -1, _PART)
    sums = chances.sum(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    part, wanted = _first_above(sums, uniform[:, None] * sums[:, -1:])
    before = functional.pad(sums, (1, 0)).gather(1, part)
    inside = chances[torch.arange(len(chances), device=part.device), part[:, 0]]
    token, _ = _first_above(inside.cumsum(dim=-1, dtype=torch.float64), wanted - before)
    return (part * _PART + token)[:, 0]


def _first_above(sums: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(R, 1) the first place whose sum exceeds what is wanted, and what is wanted, below the last sum."""
    wanted = torch.minimum(wanted, torch.nextafter(sums[:, -1:], torch.zeros_like(wanted)))
    return torch.searchsorted(sums, wanted, right=True), wanted


def log_probs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """(R,) log π(y) of each row's token, from logits divided by the temperature, before any filter."""
    z = logits if temperature in (0, 1) else logits / temperature
    return z.gather(1, tokens[:, None])[:, 0] - z.logsumexp(dim=-1)
