"""Which way of sampling is faster on a device such as a GPU: what `sampler: auto` learns from four turns.

The tree computes less, and yet it took twice as long as `generate` on an H100. So `auto` times both ways:

    turn of training    way          timed
    1                   the tree     no: it also compares the first samples, compiles and allocates
    2                   the tree     yes
    3                   `generate`   no: kernels are loaded, and cuDNN plans for each length it has not seen
    4                   `generate`   yes
    5 and later         `generate` if it took fewer seconds per token by more than 5%; otherwise the tree

The seconds of a turn are divided by the tokens of its longest completion, because that many steps were made.
Turns of evaluation go the way that is known so far and are not timed: they may have another number of rows.

Each rank decides for itself. In these turns no rank waits for another: the tree refuses weights that ranks
share, and then nothing is timed. Nothing is timed on a CPU either, so a run there repeats itself to the bit.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lambda_grpo.packing.cost import now

Way = Callable[[], Tensor]  # gives (B, prompt + completion) ids

_MARGIN = 1.05
_NO_MEMORY = float("inf")  # in place of seconds

_logger = logging.getLogger(__name__)


def is_timed(device: torch.device) -> bool:
    """Whether `auto` times both ways on this device."""
    return device.type != "cpu"


class SamplingTrial:
    """Seconds per token of both ways, each None until it was timed."""

    def __init__(self) -> None:
        self._warm = False  # whether this process has sampled on the tree
        self._generate_is_warm = False
        self._tree: float | None = None
        self._generate: float | None = None

    @property
    def generates(self) -> bool:
        """Whether `generate` was chosen."""
        if self._tree is None or self._generate is None:
            return False
        return self._generate * _MARGIN < self._tree

    def kept(self) -> dict[str, float]:
        """For a checkpoint, once both ways were timed. Until then a resumed run times both anew."""
        if self._tree is None or self._generate is None:
            return {}
        return {"tree": self._tree, "generate": self._generate}

    def load(self, kept: dict[str, Any]) -> None:
        """Put back what `kept` returned."""
        self._tree, self._generate = kept.get("tree"), kept.get("generate")

    def turn(self, prompts: Tensor, tree: Way, generate: Way, training: bool) -> Tensor:
        """Sample a turn by the way that is chosen, or that is to be timed.

        If memory runs out in `generate`, which needs more of it, the tree samples this turn and all later.
        An error of the tree passes through, and the turn does not count.

        Args:
            prompts: (B, prompt) ids.
            tree, generate: the two ways to sample these prompts.
            training: False in evaluation.
        """
        timing = training and self._warm and self._generate is None
        if self.generates or (timing and self._tree is not None):
            try:
                output, seconds = _timed(prompts, generate)
            except torch.OutOfMemoryError:
                self._decide(_NO_MEMORY)  # and go on below, where what the error held is free again
            else:
                if timing and self._generate_is_warm:
                    self._decide(seconds)
                self._generate_is_warm = True
                return output
        elif timing:
            output, self._tree = _timed(prompts, tree)
            return output
        output = tree()
        self._warm = self._warm or training
        return output

    def _decide(self, generate: float) -> None:
        generated = self.generates
        self._generate = generate
        tree = f"the tree took {_milliseconds(self._tree)}"
        other = "ran out of memory" if generate == _NO_MEMORY else f"took {_milliseconds(generate)}"
        if self.generates:
            _logger.warning(
                "Transformers' generate samples from now on: it %s, and %s. "
                "Set sampler='tree' to stay on the tree all the same",
                other,
                tree,
            )
        else:
            _logger.log(
                logging.WARNING if generated else logging.INFO,
                "Sampling on the tree from now on: %s, and transformers' generate %s. "
                "Set sampler='generate' to use generate all the same",
                tree,
                other,
            )


def _milliseconds(seconds: float | None) -> str:
    return f"{1000 * (seconds or 0):.3g} ms a token"


def _timed(prompts: Tensor, way: Way) -> tuple[Tensor, float]:
    """What a way samples, and its seconds per token of the longest completion."""
    started = now(prompts.device)
    output = way()
    seconds = now(prompts.device) - started
    return output, seconds / (output.shape[1] - prompts.shape[1])
