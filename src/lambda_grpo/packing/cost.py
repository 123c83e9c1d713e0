"""What an update costs on a packed tree and on plain rows, so that packing is used where it pays.

A first guess comes from shapes alone, in floating-point operations of a forward and backward pass. Its
constants were fitted to times on a CPU, so slow operations count more than once:

    6 · weights of the layers · tokens              their matrix products
    28 · heads · head size · layers · pairs         attention, per query-key pair
    10.8 · d · V · predicted tokens                 the chunked head, which makes its logits twice
    1200 · layers · d · tokens                      norms, activations, rotations
    pieces · layers · 160 µs                        the fixed cost of calling attention

A `Calibration` corrects the guess for each way by what was timed on the machine in use:

    seconds = fixed + factor · (dense + attention · attending),

where `attending` is the guess's attention with its pieces, and `dense` all else.

If FlexAttention has a kernel, the tree's pairs are those of the blocks that it computes. The guess ignores
sliding windows and memory.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from lambda_grpo.errors import InputError
from lambda_grpo.packing.attention import plan_limits
from lambda_grpo.packing.attention.blocks import BLOCK, PaddedTree, block_table
from lambda_grpo.packing.attention.plan import planned_size
from lambda_grpo.packing.layout import PackedTree

_SECONDS_PER_PIECE = 160e-6
_PULL = 0.05  # of a fit towards the guess, against 1 of a timed update
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
        return sum(self.parts(flops_per_second))

    def parts(self, flops_per_second: float) -> tuple[float, float]:
        """Seconds of what each token costs by itself, and of attention."""
        attending = self.attention / flops_per_second + self.pieces * _SECONDS_PER_PIECE
        return (self.linear + self.head + self.other) / flops_per_second, attending


@dataclass(frozen=True)
class WayCost:
    """seconds = fixed + factor · (dense + attention · attending), of one way to run an update.

    `dense` and `attending` are the two parts of the guess, `Work.parts`.
    """

    fixed: float = 0.0
    factor: float = 1.0
    attention: float = 1.0

    @classmethod
    def fitted(cls, guesses: Sequence[tuple[float, float]], seconds: Sequence[float]) -> "WayCost":
        """The least squares of relative errors, drawn a little to the guess times one factor.

        So what the timed updates do not tell apart stays in the guess's proportions. The largest of them is
        met exactly, and no part is negative.

        >>> found = WayCost.fitted([(1.0, 1.0), (2.0, 1.0), (2.0, 4.0)], [2.0, 3.0, 4.5])
        >>> print(f"{found.fixed:.1f} {found.factor:.1f} {found.attention:.1f}")  # 0.5 + dense + attending/2
        0.5 1.0 0.5
        """
        dense, attending = np.array(guesses).T
        slowest = int(np.argmax(dense + attending))
        unit = float(seconds[slowest] / (dense + attending)[slowest])
        parts = np.stack([np.full(len(seconds), seconds[slowest]), unit * dense, unit * attending], axis=1)
        timed = parts / np.array(seconds)[:, None]
        shares = np.linalg.lstsq(
            np.vstack([timed, _PULL * np.eye(3)]),
            np.concatenate([np.ones(len(seconds)), _PULL * np.array([0.0, 1.0, 1.0])]),
            rcond=None,
        )[0]
        shares = np.maximum(shares, [0.0, 0.05, 0.05])
        fixed, factor, attention = (shares / (timed[slowest] @ shares)).tolist()
        return cls(fixed * seconds[slowest], factor * unit, attention / factor)

    def seconds(self, dense: float, attending: float) -> float:
        return self.fixed + self.factor * (dense + self.attention * attending)


@dataclass(frozen=True)
class Calibration:
    """What was timed on the machine at hand; what is packed is a function of it and of shapes.

    Attributes:
        flops_per_second: of a matrix product.
        rows, tree: the cost of each way.
    """

    flops_per_second: float
    rows: WayCost = WayCost()
    tree: WayCost = WayCost()

    def as_numbers(self) -> dict[str, Any]:
        """For a file; `from_numbers` reads it."""
        return asdict(self)

    @classmethod
    def from_numbers(cls, numbers: Mapping[str, Any]) -> "Calibration":
        return cls(float(numbers["flops_per_second"]), WayCost(**numbers["rows"]), WayCost(**numbers["tree"]))

    def gain(self, rows: Sequence[Work], trees: Sequence[Work]) -> float:
        """How many times faster the trees should be, all passes of a micro-batch together."""
        rate = self.flops_per_second
        slow, fast = (
            sum(way.seconds(*work.parts(rate)) for work in works)
            for way, works in ((self.rows, rows), (self.tree, trees))
        )
        return slow / fast


def tree_work(packed: PackedTree, config: Any, in_blocks: bool = False) -> Work:
    """Work of one update on a packed tree.

    Args:
        packed: as the model gets it.
        config: the text config of a transformers model.
        in_blocks: attention by FlexAttention instead of pieces.
    """
    if in_blocks:
        return _work(config, packed.num_tokens, _block_pairs(packed), len(packed.target), pieces=1)
    width = getattr(config, "num_attention_heads", 1) * _head_size(config)  # without heads _work raises
    tree = packed.subtree_end.cpu().numpy(), packed.position.cpu().numpy()
    pairs, pieces = planned_size(*tree, plan_limits(width, stored=False).overhead)
    return _work(config, packed.num_tokens, pairs, len(packed.target), pieces)


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


def _block_pairs(packed: PackedTree) -> int:
    tree = PaddedTree.of(packed.subtree_end.cpu().numpy(), packed.position.cpu().numpy())
    return int(block_table(tree).some.sum()) * BLOCK**2


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
def flops_per_second(threads: int, kind: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Of a matrix product: the best of five, about 50 ms in all. `threads` only tells measurements apart."""
    device = torch.device(kind)
    size = 1024 if kind == "cpu" else 8192
    a, b = (torch.ones(n, size, device=device, dtype=dtype) for n in (size // 2, size))
    times = []
    for _ in range(6):
        started = now(device)
        torch.mm(a, b)
        times.append(now(device) - started)
    return 2 * a.numel() * b.shape[1] / min(times[1:])


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
