"""In which precision a run holds the weights that it trains, and whether that resolves its learning rate.

Weights are loaded in float32, as TRL does, whatever the precision of the checkpoint. `--dtype` changes that.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainingArguments

from lambda_grpo.errors import InputError, expect

DTYPES = ("float32", "bfloat16", "float16", "auto")
_LOOKED_AT = 100_000  # weights of a model


def loading(dtype: str, model_init_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """What `from_pretrained` gets: `model_init_kwargs`, and the precision, which may stand there as well.

    Raises:
        InputError: both name one, and not the same.
    """
    given = dict(model_init_kwargs or {})
    there = str(given.setdefault("dtype", dtype))
    if dtype not in (DTYPES[0], there):
        raise InputError(
            f"dtype is {dtype!r}, but model_init_kwargs says {there!r}: leave one of the two away"
        )
    return given


def check(dtype: str, fp16: bool) -> None:
    """Raise InputError for an unknown precision, and for one that `fp16` cannot train."""
    expect(dtype in DTYPES, "dtype", repr(dtype), f"one of {', '.join(DTYPES)}")
    wanted = "float32 where fp16 is set: it scales the gradients of float32 weights"
    expect(not (fp16 and dtype == "float16"), "dtype", repr(dtype), wanted)


def smallest_change(weight: float, dtype: torch.dtype) -> float:
    """What must at least be added to a weight so that it changes: half the distance to its neighbour.

    A weight in [2^e, 2^(e+1)) has its neighbours at the distance eps · 2^e, and a sum is rounded to the
    nearest of them. bfloat16 has eps = 2^-7: around 0.02, which lies in [2^-6, 2^-5), they are 2^-13 apart.

    >>> smallest_change(0.02, torch.bfloat16) == 2**-14  # 6.1e-05
    True
    >>> weight = torch.tensor(0.02, dtype=torch.bfloat16)
    >>> bool(weight + 6e-5 == weight), bool(weight + 7e-5 == weight)
    (True, False)
    """
    return torch.finfo(dtype).eps * 2.0 ** math.floor(math.log2(weight)) / 2 if weight else 0.0


def warning(model: torch.nn.Module, config: TrainingArguments) -> str:
    """What to say if most trained weights would stay as they are; empty if the precision will do.

    The rule: a step of Adam changes a weight by about the learning rate, however large its gradient is. If
    that is less than `smallest_change` of the median weight (by magnitude), half of all weights or more
    stay as they are, step after step. Adapters on frozen weights are judged by themselves. Optimisers other
    than Adam make steps of other sizes, and get no warning.
    """
    learning_rate = config.learning_rate
    if "adam" not in config.optim:
        return ""
    for dtype, weights in _trained(model).items():
        typical = float(weights.abs().median())
        least = smallest_change(typical, dtype)
        if learning_rate < least:
            name = str(dtype).removeprefix("torch.")
            return (
                f"warning: {name} does not resolve the learning rate {learning_rate:g}: a step of Adam "
                f"changes a weight by about that much, and the median weight, {typical:.2g}, stays as it is "
                f"unless it changes by {least:.1g}. So most weights stay as they are. Train in float32 "
                "(--dtype float32), or raise the learning rate"
            )
    return ""


def _trained(model: torch.nn.Module) -> dict[torch.dtype, torch.Tensor]:
    """Some of the weights that are trained, evenly spaced, by their precision."""
    trained = [weight.detach() for weight in model.parameters() if weight.requires_grad and weight.numel()]
    every = 1 + sum(weight.numel() for weight in trained) // _LOOKED_AT
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
    for weight in trained:
        by_dtype.setdefault(weight.dtype, []).append(weight.reshape(-1)[::every].float().cpu())
    return {dtype: torch.cat(parts) for dtype, parts in by_dtype.items()}
