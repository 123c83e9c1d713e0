"""The first samples of a model are compared with plain passes, because an unknown model may fail silently.

A fault in cache, positions or masks changes the log-probs of what was drawn. So these are compared, once per
model, with those of a full forward pass over some rows, without a cache and without sharing.
"""

from typing import Any

import torch

from lambda_grpo.errors import InputError
from lambda_grpo.packing.supported import inner_model
from lambda_grpo.sampling.draw import log_probs
from lambda_grpo.sampling.request import Request, Samples

ROWS = 4  # the first and the last row, and two between
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-2}  # RMSNorm computes in float32 always
_LOW_PRECISION = 0.25  # in bfloat16 logits around 20 are off by 0.1; a wrong cache changes log-probs by more


def check_samples(model: Any, request: Request, samples: Samples) -> None:
    """Compare log-probs of some rows with those of plain passes, on average over their tokens.

    Raises:
        InputError: they differ.
    """
    count, logps = len(samples.completions), samples.logps or []
    for row in sorted({round(i * (count - 1) / (ROWS - 1)) for i in range(ROWS)}):
        prompt, ids = request.prompts[row], samples.completions[row]
        off = float((_plain(model, request, prompt, ids) - torch.tensor(logps[row])).abs().mean())
        if not off <= _tolerance(model):
            raise InputError(
                f"{type(inner_model(model)).__name__}: log-probs of sampled tokens are off by {off:.2g} on "
                "average from those of a plain pass"
            )


def _plain(model: Any, request: Request, prompt: list[int], ids: list[int]) -> torch.Tensor:
    device = inner_model(model).device
    row = torch.tensor([[*prompt, *ids[:-1]]], device=device)  # the last one predicts nothing
    logits = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0]
    drawn = torch.tensor(ids, device=device)
    return log_probs(logits[len(prompt) - 1 :].float(), drawn, request.settings.temperature).cpu()


def _tolerance(model: Any) -> float:
    inner = inner_model(model)
    if torch.is_autocast_enabled(inner.device.type):
        return _LOW_PRECISION
    return _TOLERANCE.get(inner.dtype, _LOW_PRECISION)
