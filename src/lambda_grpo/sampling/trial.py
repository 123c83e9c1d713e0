"""The first samples of a model are compared with plain passes, because an unknown model may fail silently.

A fault in cache, positions or masks changes the log-probs of what was drawn. So these are compared, once per
model, with those of a full forward pass over some rows, without a cache and without sharing. Of a row's drawn
tokens some are compared, from its beginning to its end, because logits of all of them may not fit in memory.

Rounding changes them too, in bfloat16 or under autocast by as much as a small fault does. So a row that
differs is compared with an exact pass in float32, and n of its log-probs may on average be off by

    2 · (1 + 1/√n) · Σ_v π(v) |log π_plain(v) - log π(v)| + a fixed tolerance,

where π is exact and the sum, averaged over the n places, is what rounding does to a plain pass. On SmolLM2
under autocast, rows of 16 tokens are off by 0.6 to 1.0 times this sum, and by 3.4 to 4.3 times if positions
are wrong by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lambda_grpo.errors import InputError
from lambda_grpo.packing.proof import exact_attention, exact_copy, exact_products
from lambda_grpo.packing.supported import inner_model
from lambda_grpo.sampling.prefill import logits_only_at
from lambda_grpo.sampling.request import Request, Samples

ROWS = 4  # the first and the last row, and two between
_LOGITS = 2**24  # of one row: 64 MiB in float32, 110 tokens of a vocabulary of 152,000 …
_FEWEST = 16  # … but at least so many tokens
_TOLERANCE = 1e-2  # RMSNorm computes in float32 always
_TOLERANCE_FLOAT64 = 1e-3
_FACTOR = 2.0
_NOTHING_EXACT = 0.25  # the difference from a plain pass that is allowed where no exact pass can run


@dataclass(frozen=True, eq=False)
class _Row:
    """A sampled row, and those of its drawn tokens that are compared.

    Attributes:
        ids: (1, L) prompt and completion without the last token, which predicts nothing.
        places: (n,) of the tokens before the compared ones.
        tokens: (n,) the compared ones.
        logps: (n,) what the sampler says of them, on the CPU.
        temperature: of the sampler.
    """

    ids: Tensor
    places: Tensor
    tokens: Tensor
    logps: Tensor
    temperature: float

    def off(self, scores: Tensor) -> float:
        """How far the sampler's log-probs are from these (n, V), on average."""
        found = scores.gather(1, self.tokens[:, None])[:, 0]
        return float((found.cpu() - self.logps).abs().mean())

    def rounding(self, plain: Tensor, exact: Tensor) -> float:
        """How far rounding may take them: what it does to a plain pass, (n, V), and room for chance."""
        expected = exact.exp() * (plain - exact).abs()
        expected = expected.nan_to_num(0, 0, 0)  # some models give tokens that nobody may draw -inf
        return _FACTOR * (1 + len(self.tokens) ** -0.5) * float(expected.sum(dim=-1).mean())


def check_samples(model: Any, request: Request, samples: Samples) -> None:
    """Compare log-probs of some rows with those of plain passes, on average over their tokens.

    Raises:
        InputError: they differ.
    """
    inner, count = inner_model(model), len(samples.completions)
    tolerance = _TOLERANCE_FLOAT64 if inner.dtype == torch.float64 else _TOLERANCE
    indices = sorted({round(i * (count - 1) / (ROWS - 1)) for i in range(ROWS)})
    rows = [_row(model, request, samples, index) for index in indices]
    passed = [(row, _scores(model, inner, row)) for row in rows]
    different = [(row, plain) for row, plain in passed if not row.off(plain) <= tolerance]
    exacts = _exact_scores(inner, [row for row, _ in different])
    for (row, plain), exact in zip(different, exacts, strict=True):
        if exact is None:
            off, allowed = row.off(plain), _NOTHING_EXACT
        else:
            off, allowed = row.off(exact), row.rounding(plain, exact) + tolerance
        if not off <= allowed:
            raise InputError(
                f"{type(inner).__name__}: log-probs of sampled tokens are off by {off:.2g} on average, where "
                f"rounding may account for {allowed:.2g}"
            )


def _row(model: Any, request: Request, samples: Samples, index: int) -> _Row:
    inner = inner_model(model)
    prompt, drawn = request.prompts[index], samples.completions[index]
    logps: Sequence[float] = (samples.logps or [])[index]
    most = max(_FEWEST, _LOGITS // inner.get_input_embeddings().num_embeddings)
    chosen = torch.linspace(0, len(drawn) - 1, min(len(drawn), most), dtype=torch.float64).round().long()
    return _Row(
        torch.tensor([[*prompt, *drawn[:-1]]], device=inner.device),
        (chosen + len(prompt) - 1).to(inner.device),
        torch.tensor(drawn)[chosen].to(inner.device),
        torch.tensor(logps)[chosen],
        request.settings.temperature,
    )


def _scores(forward: Any, inner: Any, row: _Row) -> Tensor:
    """(n, V) log-probs, float32, of all tokens at the compared places, by a pass over the whole row."""
    with logits_only_at(inner, row.places):
        output = forward(input_ids=row.ids, attention_mask=torch.ones_like(row.ids), use_cache=False)
    z = output.logits[0].float()
    return (z if row.temperature in (0, 1) else z / row.temperature).log_softmax(dim=-1)


def _exact_scores(inner: Any, rows: Sequence[_Row]) -> list[Tensor] | list[None]:
    """Those of a pass in float32; None for each row if there is no room, or if kernels need 16 bits."""
    try:
        wide = exact_copy(inner) if rows else None
        if wide is None:
            return [None for _ in rows]
        forward = partial(type(wide).forward, wide)  # without the autocast that accelerate puts around it
        with exact_products(inner.device), exact_attention(wide):
            return [_scores(forward, wide, row) for row in rows]
    except RuntimeError:
        return [None for _ in rows]
