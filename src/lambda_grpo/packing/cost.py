"""What an update costs on a packed tree and on plain rows, so that packing is used where it pays.

Floating-point operations of a forward and backward pass, from shapes alone; the constants were fitted to
measured times, so that those of slow operations count more than once:

    6 · weights of the layers · tokens              their matrix products
    28 · heads · head size · layers · pairs         attention, per query-key pair
    10.8 · d · V · predicted tokens                 the chunked head, which makes its logits twice
    1200 · layers · d · tokens                      norms, activations, rotations
    pieces · layers · 160 µs                        the fixed cost of calling attention

Sliding windows are left aside, and so is memory.
"""

import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from lambda_grpo.errors import InputError
from lambda_grpo.packing.attention import plan_limits
from lambda_grpo.packing.attention.plan import num_pairs
from lambda_grpo.packing.layout import PackedTree

WORTHWHILE = 1.1  # pack if `predicted_gain` is at least this

_SECONDS_PER_PIECE = 160e-6
_UNGATED = {"gpt2", "gpt_neox", "gptj", "opt", "phi", "starcoder2", "gpt_neo", "gpt_bigcode"}


@dataclass(frozen=True)
class Work:
    """Floating-point operations, and calls of attention in one layer times layers."""

    linear: float
    attention: float
    head: float
    other: float
    pieces: int

    @property
    def flops(self) -> float:
        """Linear, attention and head work."""
        return self.linear + self.attention + self.head

    def seconds(self, flops_per_second: float) -> float:
        return (self.flops + self.other) / flops_per_second + self.pieces * _SECONDS_PER_PIECE


def tree_work(packed: PackedTree, config: Any) -> Work:
    """Work of one update on a packed tree.

    Args:
        packed: as the model gets it.
        config: the text config of a transformers model.
    """
    width = getattr(config, "num_attention_heads", 1) * _head_size(config)  # without heads _work raises
    plan = packed.layout.plan(None, plan_limits(width, stored=False))
    pieces = sum(len(block.pieces) for block in plan)
    return _work(config, packed.num_tokens, num_pairs(plan), len(packed.target), pieces)


def row_work(packed: PackedTree, config: Any, projected: int | None = None) -> Work:
    """Work of one update on the same completions in rows of their own, padded to the longest.

    Args:
        packed, config: as for `tree_work`.
        projected: positions that the head projects. None: those of completions, padding left out.
    """
    rows = len(packed.lengths)
    width = int(packed.prompt_lengths.max() + packed.lengths.max())
    predicted = int((packed.index >= 0).sum()) if projected is None else projected
    return _work(config, rows * width, rows * width**2, predicted, pieces=1)


def predicted_gain(
    packed: PackedTree, config: Any, projected: int | None = None, rate: float | None = None
) -> float:
    """How many times faster an update on the packed tree should be than on plain rows, on this machine's CPU.

    Args and shapes as for `row_work`. TRL on CPU projects every position: pass rows × width for `projected`.
    `rate` is in floating-point operations per second; None: `flops_per_second` measures it.
    """
    rate = rate or flops_per_second(torch.get_num_threads())
    return row_work(packed, config, projected).seconds(rate) / tree_work(packed, config).seconds(rate)


def _work(config: Any, tokens: int, pairs: int, predicted: int, pieces: int) -> Work:
    try:
        return _operations(config, tokens, pairs, predicted, pieces)
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"{config.model_type}: the cost of its layers cannot be told from its configuration ({error}); "
            "set tree_packing='on' to pack all the same"
        ) from error


def _operations(config: Any, tokens: int, pairs: int, predicted: int, pieces: int) -> Work:
    layers, d = config.num_hidden_layers, config.hidden_size
    heads = config.num_attention_heads * _head_size(config)
    return Work(
        linear=6.0 * layers * _layer_weights(config) * tokens,
        attention=28.0 * heads * layers * pairs,
        head=10.8 * d * config.vocab_size * predicted,
        other=1200.0 * layers * d * tokens,
        pieces=pieces * layers,
    )


def _head_size(config: Any) -> int:
    heads = getattr(config, "num_attention_heads", 1)
    return int(getattr(config, "head_dim", None) or config.hidden_size // heads)


def _layer_weights(config: Any) -> int:
    """Weights of one layer that each token is multiplied with."""
    d, size = config.hidden_size, _head_size(config)
    grouped = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    attention = 2 * d * size * (config.num_attention_heads + grouped)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * d
    experts = getattr(config, "num_experts_per_tok", None)
    if experts:
        inner = experts * (getattr(config, "moe_intermediate_size", None) or inner)
    return attention + (2 if config.model_type in _UNGATED else 3) * d * inner


@cache
def flops_per_second(threads: int) -> float:
    """Of a matrix product with this number of threads: the best of five, about 50 ms in all."""
    a, b = torch.ones(512, 1024), torch.ones(1024, 1024)
    times = []
    for _ in range(6):
        started = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - started)
    return 2 * a.numel() * b.shape[1] / min(times[1:])
