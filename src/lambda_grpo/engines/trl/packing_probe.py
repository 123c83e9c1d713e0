"""Whether a *model* can be packed: one packed pass over three short completions, compared with plain rows.

It runs once for each model (policy, reference), in training and in evaluation. `packing_trial.py` asks
another question, once a run: whether packing is right and faster on this *device*, by the run's own rows.

A model that nobody has tried may fail in a way of its own, or take a tree for a row in silence. So its packed
log-probs are compared once with those of plain rows, and a model that fails trains on plain rows.

The completions are the same on every rank. So ranks that hold shards of one model do the same here, also
where the pass fails half-way, and none waits for another.
"""

from collections.abc import Callable

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from lambda_grpo.errors import InputError
from lambda_grpo.packing import PackedTree
from lambda_grpo.packing.proof import PaddedRows, same_random_numbers
from lambda_grpo.packing.rows import pack_rows

#      prompt    completion; 0 is padding
_ROWS = [
    [1, 2, 3, 4, 5, 6, 7],
    [1, 2, 3, 4, 5, 8, 0],
    [1, 2, 3, 9, 0, 0, 0],
]
_WIDTH = 4  # of the completions
_WIDE, _NARROW = 1e-2, 0.25  # mean difference of log-probs that rounding may make: float32 and up, or 16 bits
# Not memory (torch's own error is a RuntimeError, so it is told apart below), nor what ends a program.
OWN_WAYS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

PackedPass = Callable[[PackedTree], Tensor]
PlainPass = Callable[[PaddedRows], Tensor]


def why_not_packed(
    packed: PackedPass, plain: PlainPass, vocabulary: int, device: torch.device, narrow: bool
) -> str:
    """The reason why a model cannot be packed; "" if its packed log-probs are those of plain rows.

    Random numbers are drawn as if nothing had been run.

    Args:
        packed: log-probs (R, T) of a packed tree.
        plain: the same of padded rows.
        vocabulary: number of token ids.
        device: the model's.
        narrow: whether the model computes in 16 bits.

    Raises:
        RuntimeError: memory has run out, or ranks have lost each other: that says nothing about the model.
    """
    ids = torch.tensor(_ROWS, device=device)
    rows = PaddedRows(ids % vocabulary, (ids > 0).long(), _WIDTH)
    try:
        with torch.no_grad(), same_random_numbers(device):
            first, again = plain(rows), plain(rows)
            tree = packed(pack_rows(rows.ids, rows.mask, _WIDTH))
    except (torch.OutOfMemoryError, torch.distributed.DistError):
        raise
    except OWN_WAYS as error:
        if should_reduce_batch_size(error):
            raise
        return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    noise, off = (float((x - first)[rows.real].abs().mean()) for x in (again, tree))
    allowed = _NARROW if narrow else _WIDE
    if not noise <= allowed / 10:
        return (
            f"two passes over the same rows gave log-probs that differ by {noise:.2g}: the model draws "
            "random numbers (dropout, noise), and a shared token would have the same for all its completions"
        )
    if not off <= allowed:
        return f"its packed log-probs are {off:.2g} off those of plain rows (at most {allowed} is rounding)"
    return ""
