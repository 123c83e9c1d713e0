"""What a run learns about packing from its first micro-batch, before it decides anything.

Whether packed rows are right here: log-probs and a few gradients of some rows, against plain rows
(`packing/proof.py`). And for `auto` what each way costs: updates of some rows and of half as many are timed
(`packing/cost.py`). Both are written down at once, so a run that is killed and begins anew decides alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lambda_grpo.packing import PackedTree
from lambda_grpo.packing.cost import Calibration, WayCost, flops_per_second, now, row_work, tree_work
from lambda_grpo.packing.proof import (
    PaddedRows,
    Proof,
    exact_outcome,
    outcome,
    parameters_of,
    prove,
    same_random_numbers,
    some_parameters,
)
from lambda_grpo.packing.rows import pack_rows

_PROOF_TOKENS = {"cpu": 512, "cuda": 4096}  # of the rows that are compared, prompts included
_SECONDS = 3.0  # that an update of the timed rows should take at most
_REPEATS = 2

PlainPass = Callable[[PaddedRows], Tensor]
PackedPass = Callable[[PackedTree], Tensor]


@dataclass(frozen=True)
class Trial:
    """A policy with its two passes, each to (R, T) log-probs.

    Attributes:
        model: the transformers model inside wrappers.
        plain, packed: as the run computes them.
        temperature: of sampling.
        differentiable: False where gradients cannot be asked for: sharded weights, reentrant checkpoints.
    """

    model: Any
    plain: PlainPass
    packed: PackedPass
    temperature: float
    differentiable: bool

    def proof(self, rows: PaddedRows) -> Proof:
        """Compare packed with plain rows, on as many as `_PROOF_TOKENS` allow, two at least."""
        rows = rows.first(_count_within(rows, _PROOF_TOKENS.get(rows.ids.device.type, 4096)))
        names = some_parameters(self.model) if self.differentiable else []
        parameters = parameters_of(self.model, names)
        tree = pack_rows(rows.ids, rows.mask, rows.width)
        with same_random_numbers(rows.ids.device):
            plain = outcome(partial(self.plain, rows), rows.real, parameters)
            packed = outcome(partial(self.packed, tree), rows.real, parameters)
            names = names if plain.gradients else []
            exact = exact_outcome(self.model, rows, self.temperature, names) if self.differentiable else None
        return prove(plain, packed, exact)

    def calibration(self, rows: PaddedRows, in_blocks: bool) -> Calibration:
        """Time both ways."""
        kind, dtype = rows.ids.device.type, self.model.dtype
        rate = flops_per_second(torch.get_num_threads(), kind, torch.float32 if kind == "cpu" else dtype)
        guesses: dict[str, list[float]] = {"rows": [], "tree": []}
        seconds: dict[str, list[float]] = {"rows": [], "tree": []}
        for part in self._parts(rows, rate):
            tree = pack_rows(part.ids, part.mask, part.width)
            guess = works(tree, self.model.config.get_text_config(), part.ids.numel(), in_blocks)
            for way, work, score in (
                ("rows", guess[0], partial(self.plain, part)),
                ("tree", guess[1], partial(self.packed, tree)),
            ):
                guesses[way].append(work.seconds(rate))
                seconds[way].append(self._fastest(score, part))
        fitted = {way: WayCost.fitted(guesses[way], seconds[way]) for way in guesses}
        return Calibration(rate, **fitted)

    def _parts(self, rows: PaddedRows, rate: float) -> Sequence[PaddedRows]:
        """Half of the rows, and all; fewer, where an update of them would take long."""
        config, count = self.model.config.get_text_config(), len(rows.ids)
        while count > 2:
            part = rows.first(count)
            tree = pack_rows(part.ids, part.mask, part.width)
            if row_work(tree, config, part.ids.numel()).seconds(rate) <= _SECONDS:
                break
            count = max(count // 2, 2)
        return [rows.first(max(count // 2, 1)), rows.first(count)]

    def _fastest(self, score: Callable[[], Tensor], rows: PaddedRows) -> float:
        parameters = [p for p in self.model.parameters() if p.requires_grad] if self.differentiable else []
        times = []
        for _ in range(_REPEATS):
            started = now(rows.ids.device)
            with same_random_numbers(rows.ids.device):
                outcome(score, rows.real, parameters)
            times.append(now(rows.ids.device) - started)
        return min(times)


def works(tree: PackedTree, config: Any, padded: int, in_blocks: bool) -> tuple[Any, Any]:
    """Work of plain rows, `padded` tokens in all, and of their tree.

    On a CPU TRL projects every position onto the vocabulary; on a device those of completions only.
    """
    return row_work(tree, config, None if in_blocks else padded), tree_work(tree, config, in_blocks)


def _count_within(rows: PaddedRows, tokens: int) -> int:
    """How many of the first rows have so many tokens; two at least."""
    return max(2, int((rows.mask.sum(dim=1).cumsum(0) <= tokens).sum()))
