"""The first samples of a model are compared with plain passes, because an unknown model may fail silently.

A fault in cache, positions or masks changes the log-probs of what was drawn. So these are compared, once per
model, with those of a full forward pass over some rows, without a cache and without sharing. Of a row's drawn
tokens some are compared, from its beginning to its end, because logits of all of them may not fit in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lambda_grpo.errors import InputError
from lambda_grpo.packing.supported import inner_model
from lambda_grpo.sampling.draw import log_probs
from lambda_grpo.sampling.prefill import logits_only_at
from lambda_grpo.sampling.request import Request, Samples

ROWS = 4  # the first and the last row, and two between
_LOGITS = 2**24  # of one row: 64 MiB in float32, 110 tokens of a vocabulary of 152,000 …
_FEWEST = 16  # … but at least so many tokens
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-2}  # RMSNorm computes in float32 always
_LOW_PRECISION = 0.25  # in bfloat16 logits around 20 are off by 0.1; a wrong cache changes log-probs by more


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


def check_samples(model: Any, request: Request, samples: Samples) -> None:
    """Compare log-probs of some rows with those of plain passes, on average over their tokens.

    Raises:
        InputError: they differ.
    """
    count = len(samples.completions)
    for index in sorted({round(i * (count - 1) / (ROWS - 1)) for i in range(ROWS)}):
        row = _row(model, request, samples, index)
        off = float((_plain(model, row) - row.logps).abs().mean())
        if not off <= _tolerance(model):
            raise InputError(
                f"{type(inner_model(model)).__name__}: log-probs of sampled tokens are off by {off:.2g} on "
                "average from those of a plain pass"
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


def _plain(model: Any, row: _Row) -> Tensor:
    """(n,) log-probs of the compared tokens by a plain pass, on the CPU."""
    with logits_only_at(inner_model(model), row.places):
        output = model(input_ids=row.ids, attention_mask=torch.ones_like(row.ids), use_cache=False)
    return log_probs(output.logits[0].float(), row.tokens, row.temperature).cpu()


def _tolerance(model: Any) -> float:
    inner = inner_model(model)
    if torch.is_autocast_enabled(inner.device.type):
        return _LOW_PRECISION
    return _TOLERANCE.get(inner.dtype, _LOW_PRECISION)
