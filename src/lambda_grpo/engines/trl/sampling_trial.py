"""Which way of sampling is faster on a device such as a GPU: what `sampler: auto` learns from six turns.

The tree computes less, but where launching kernels takes longer than running them, as on an H100 with a small
model, that need not be faster. So `auto` times both ways:

    turn of training    way          timed
    1                   the tree     no: it also compares the first samples, compiles and allocates
    2, 3                the tree     yes
    4                   `generate`   no: kernels are loaded, and cuDNN plans for each length it has not seen
    5, 6                `generate`   yes
    7 and later         `generate` if it took fewer seconds per token by more than 10%; otherwise the tree

The seconds of a turn are divided by the tokens of its longest completion, because that many steps were made.
Of two turns the faster counts. Turns of evaluation go the way that is known so far and are not timed: they
may have another number of rows.

Each rank decides for itself. In these turns no rank waits for another: the tree refuses weights that ranks
share, and then nothing is timed. Nothing is timed on a CPU either, so a run there repeats itself to the bit.
"""

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lambda_grpo.packing.cost import now

Way = Callable[[], Tensor]  # gives (B, prompt + completion) ids

_TIMED = 2  # turns of each way
TRIAL_TURNS = 2 * (1 + _TIMED)
_MARGIN = 1.1
_NO_MEMORY = float("inf")  # in place of seconds

_logger = logging.getLogger(__name__)


def is_timed(device: torch.device) -> bool:
    """Whether `auto` times both ways on this device."""
    return device.type != "cpu"


class SamplingTrial:
    """Seconds per token of both ways, turn by turn; the choice, once there is one."""

    def __init__(self) -> None:
        self._tree: list[float] = []  # the first turn of each way is not timed but counts here
        self._generate: list[float] = []
        self._chosen: dict[str, float] = {}

    @property
    def generates(self) -> bool:
        """Whether `generate` was chosen."""
        return bool(self._chosen) and self._chosen["generate"] * _MARGIN < self._chosen["tree"]

    def kept(self) -> dict[str, float]:
        """For a checkpoint, once both ways were timed. Until then a resumed run times both anew."""
        return dict(self._chosen)

    def load(self, kept: Mapping[str, float]) -> None:
        """Put back what `kept` returned."""
        self._chosen = dict(kept)

    def turn(self, prompts: Tensor, tree: Way, generate: Way, training: bool) -> Tensor:
        """Sample a turn by the way that is chosen, or that is to be timed.

        If memory runs out in `generate`, which needs more of it, the tree samples this turn and all later.
        An error of the tree passes through, and the turn does not count.

        Args:
            prompts: (B, prompt) ids.
            tree, generate: the two ways to sample these prompts.
            training: False in evaluation.
        """
        timing = training and not self._chosen
        if self.generates or (timing and len(self._tree) > _TIMED):
            try:
                output, seconds = _timed(prompts, generate)
            except torch.OutOfMemoryError:
                self._choose(_NO_MEMORY)  # and go on below, where what the error held is free again
            else:
                if timing:
                    self._generate.append(seconds)
                    if len(self._generate) > _TIMED:
                        self._choose(min(self._generate[1:]))
                return output
        if not timing or self._chosen:
            return tree()
        output, seconds = _timed(prompts, tree)
        self._tree.append(seconds)
        return output

    def _choose(self, generate: float) -> None:
        generated = self.generates
        tree = self._chosen["tree"] if self._chosen else min(self._tree[1:])
        self._chosen = {"tree": tree, "generate": generate}
        if generate == _NO_MEMORY:
            _logger.log(
                logging.WARNING if generated else logging.INFO,
                "Sampling on the tree from now on: transformers' generate ran out of memory. With fewer "
                "completions in a generation batch it may have room",
            )
        elif self.generates:
            _logger.warning(
                "Transformers' generate samples from now on: it took %s, and the tree took %s. "
                "Set sampler='tree' to stay on the tree all the same",
                _milliseconds(generate),
                _milliseconds(tree),
            )
        else:
            _logger.info(
                "Sampling on the tree from now on: it took %s, and transformers' generate took %s. "
                "Set sampler='generate' to use generate all the same",
                _milliseconds(tree),
                _milliseconds(generate),
            )


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms a token"


def _timed(prompts: Tensor, way: Way) -> tuple[Tensor, float]:
    """What a way samples, and its seconds per token of the longest completion."""
    started = now(prompts.device)
    output = way()
    seconds = now(prompts.device) - started
    return output, seconds / (output.shape[1] - prompts.shape[1])
