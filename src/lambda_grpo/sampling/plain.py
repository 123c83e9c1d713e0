"""transformers' `generate` for what cannot be sampled on a tree, with the same settings and results."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lambda_grpo.packing.supported import inner_model
from lambda_grpo.sampling.draw import DrawSettings, log_probs
from lambda_grpo.sampling.request import Request, Samples

# Settings of transformers' `generate`, each with the value at which it does nothing.
NEUTRAL = {
    "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0,
    "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "min_length": 0,
    "min_new_tokens": 0, "guidance_scale": 1.0,
}  # fmt: skip
OF_NO_EFFECT = ("min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")  # on the likeliest token


def generate(model: Any, request: Request, reason: str) -> Samples:
    """Sample what a `Request` asks for, `batch_size` rows at a time.

    Raises:
        InputError: a model that cannot generate at all.
    """
    ids: list[list[int]] = []
    logps: list[list[float]] = []
    device = inner_model(model).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(request.seed)
        for first in range(0, len(request.prompts), request.batch_size):
            prompts = request.prompts[first : first + request.batch_size]
            tokens, scores = _generate(model, request, prompts)
            for i, (prompt, row) in enumerate(zip(prompts, tokens.tolist(), strict=True)):
                count = _length(prompt, row, request)
                ids.append(row[:count])
                logps.append([] if scores is None else scores[i, :count].tolist())
    run = sum(len(prompt) for prompt in request.prompts)
    return Samples(ids, logps if request.logprobs else None, run, reason)


def _generate(model: Any, request: Request, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
    """(rows, T) new tokens, and their log-probs if they are wanted."""
    device = inner_model(model).device
    width = max(map(len, prompts))
    pad = request.end_ids[0] if request.end_ids else 0
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=request.max_new_tokens,
        pad_token_id=pad,
        eos_token_id=list(request.end_ids) or None,
        stopping_criteria=[request.ends] if request.ends else [],
        return_dict_in_generate=True,
        output_logits=request.logprobs,
        **drawing(model, request.settings),
    )
    encoder = inner_model(model).config.is_encoder_decoder  # its completion begins with a start token
    tokens = output.sequences[:, 1 if encoder else width :]
    if not request.logprobs:
        return tokens.cpu(), None
    temperature = request.settings.temperature
    scores = [log_probs(z.float(), y, temperature) for z, y in zip(output.logits, tokens.T, strict=True)]
    return tokens.cpu(), torch.stack(scores, dim=1).cpu()


def own_settings_off(model: Any) -> dict[str, Any]:
    """Neutral values of those settings in which the model's own generation config differs from them.

    transformers fills in from that config what `generate` is not told.
    """
    own = model.generation_config
    return {name: none for name, none in NEUTRAL.items() if getattr(own, name, None) not in (None, none)}


def drawing(model: Any, settings: DrawSettings) -> dict[str, Any]:
    """The keywords of `generate` that draw as these settings do, whatever settings the model brings."""
    told = own_settings_off(model) | {"repetition_penalty": float(settings.repetition_penalty)}
    if settings.greedy:  # the rest are transformers' own defaults, about which it does not warn
        told = {name: value for name, value in told.items() if name not in OF_NO_EFFECT}
        return told | {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    filters = {"top_p": float(settings.top_p), "top_k": settings.top_k}
    if settings.min_p is not None:
        filters["min_p"] = settings.min_p
    return told | {"do_sample": True, "temperature": float(settings.temperature), **filters}


def _length(prompt: list[int], row: list[int], request: Request) -> int:
    """Tokens up to the first end token or end string; behind it `generate` pads."""
    found = np.flatnonzero(np.isin(row, request.end_ids))
    count = int(found[0]) + 1 if len(found) else len(row)
    if request.ends is None:
        return count
    for end in range(1, count):
        if bool(request.ends(torch.tensor([prompt + row[:end]]), None)[0]):
            return end
    return count
