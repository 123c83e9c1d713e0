"""Whether packing is right and faster on this *device*: what a run learns from its first micro-batch.

Right: log-probs and a few gradients of some rows are compared with those of plain rows (`packing/proof.py`).
Faster: for `auto` updates of some rows, of half as many, and of rows that share nothing are timed
(`packing/cost.py`). Both are written down at once, so a run that is killed and begins anew decides alike.
`packing_probe.py` comes before, and asks whether a *model* can be packed at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lambda_grpo.engines.trl.packing_probe import PackedPass, PlainPass
from lambda_grpo.packing import PackedTree
from lambda_grpo.packing.cost import Calibration, WayCost, flops_per_second, now, row_work, tree_work
from lambda_grpo.packing.proof import (
    Outcome,
    PaddedRows,
    Proof,
    exact_outcome,
    outcome,
    parameters_of,
    prove,
    same_random_numbers,
    some_parameters,
)
from lambda_grpo.packing.rows import pack_rows, pack_rows_within

_PROOF_TOKENS = {"cpu": 512, "cuda": 4096}  # of the rows that are compared, prompts included
_SECONDS = 3.0  # that an update of the timed rows should take at most
_ALL_SECONDS = 4.0  # of all rounds but the first, if they take no longer one by one
_MOST_ROUNDS = 12


@dataclass(frozen=True)
class Trial:
    """A policy with its two passes, each to (R, T) log-probs.

    Attributes:
        model: the transformers model inside wrappers.
        plain, packed: as the run computes them.
        temperature: of sampling.
        differentiable: False where gradients cannot be asked for: sharded weights, reentrant checkpoints.
        limit: the most tokens of a packed row, as `pack_rows_within` has it; 0: no limit.
        agreed: makes a number the same on all ranks, because all run equally many passes.
    """

    model: Any
    plain: PlainPass
    packed: PackedPass
    temperature: float
    differentiable: bool
    limit: int = 0
    agreed: Callable[[int], int] = int

    def proof(self, rows: PaddedRows) -> Proof:
        """Compare packed with plain rows, on as many as `_PROOF_TOKENS` allow, two at least."""
        rows = rows.first(_count_within(rows, _PROOF_TOKENS.get(rows.ids.device.type, 4096)))
        rows, tree = _first_pass(rows, self.limit)
        names = some_parameters(self.model) if self.differentiable else []
        parameters = parameters_of(self.model, names)
        with same_random_numbers(rows.ids.device):
            plain = outcome(partial(self.plain, rows), rows.real, parameters)
            packed = outcome(partial(self.packed, tree), rows.real, parameters)
            names = names if plain.gradients else []
            exact = self._exact(rows, names) if self.differentiable else None
        return prove(plain, packed, exact)

    def _exact(self, rows: PaddedRows, names: Sequence[str]) -> Outcome | None:
        """None also where its logits, of a whole row and vocabulary, do not fit into memory."""
        try:
            return exact_outcome(self.model, rows, self.temperature, names)
        except torch.OutOfMemoryError:
            return None

    def calibration(self, rows: PaddedRows, in_blocks: bool) -> Calibration:
        """Time both ways, packed rows also as if nothing were shared."""
        try:
            rate, updates = self._updates(rows, in_blocks)
            first = self._round(updates)
        except Exception:
            self.agreed(0)  # the other ranks ask this one too
            raise
        seconds = self._fastest(updates, first)
        fitted = {}
        for way in ("rows", "tree"):
            timed = [(u.guess, took) for u, took in zip(updates, seconds, strict=True) if u.way == way]
            fitted[way] = WayCost.fitted([guess for guess, _ in timed], [took for _, took in timed])
        return Calibration(rate, **fitted)

    def _updates(self, rows: PaddedRows, in_blocks: bool) -> tuple[float, list["_Update"]]:
        """The rate of a matrix product here, and what is timed."""
        kind, dtype = rows.ids.device.type, self.model.dtype
        rate = flops_per_second(torch.get_num_threads(), kind, torch.float32 if kind == "cpu" else dtype)
        config, parts = self.model.config.get_text_config(), self._parts(rows, rate)
        updates: list[_Update] = []
        for part, share in [(part, True) for part in parts] + [(parts[-1], False)]:
            part, tree = _first_pass(part, self.limit, share)
            plain, packed = works(tree, config, part.ids.numel(), in_blocks)
            updates.append(
                _Update("tree", packed.parts(rate), part, partial(self._pack_and_run, part, share))
            )
            if share:
                updates.append(_Update("rows", plain.parts(rate), part, partial(self.plain, part)))
        return rate, updates

    def _pack_and_run(self, rows: PaddedRows, share: bool) -> Tensor:
        """As training does it, where each micro-batch is packed and planned once."""
        return self.packed(pack_rows(rows.ids, rows.mask, rows.width, share=share))

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

    def _fastest(self, updates: Sequence["_Update"], first: list[float]) -> list[float]:
        """Seconds of each update, the least of several rounds, so that other work counts less."""
        more = self.agreed(int(min(max(_ALL_SECONDS / sum(first), 1), _MOST_ROUNDS)))
        rounds = [first, *(self._round(updates) for _ in range(more))]
        return [min(times) for times in zip(*rounds, strict=True)]

    def _round(self, updates: Sequence["_Update"]) -> list[float]:
        return [self._seconds(update) for update in updates]

    def _seconds(self, update: "_Update") -> float:
        parameters = [p for p in self.model.parameters() if p.requires_grad] if self.differentiable else []
        device = update.rows.ids.device
        started = now(device)
        with same_random_numbers(device):
            outcome(update.score, update.rows.real, parameters)
        return now(device) - started


@dataclass(frozen=True)
class _Update:
    """What is timed: `rows` or `tree`, the guess of its two parts, and how to run it."""

    way: str
    guess: tuple[float, float]
    rows: PaddedRows
    score: Callable[[], Tensor]


def works(tree: PackedTree, config: Any, padded: int, in_blocks: bool) -> tuple[Any, Any]:
    """Work of plain rows, `padded` tokens in all, and of their tree.

    On a CPU TRL projects every position onto the vocabulary; on a device those of completions only.
    """
    return row_work(tree, config, None if in_blocks else padded), tree_work(tree, config, in_blocks)


def _first_pass(rows: PaddedRows, limit: int, share: bool = True) -> tuple[PaddedRows, PackedTree]:
    """The first of the passes that training makes of some rows under this limit: its rows, and its tree."""
    tree = pack_rows_within(rows.ids, rows.mask, rows.width, limit, share=share)[0]
    return rows.first(len(tree.index)), tree


def _count_within(rows: PaddedRows, tokens: int) -> int:
    """How many of the first rows have so many tokens; two at least."""
    return max(2, int((rows.mask.sum(dim=1).cumsum(0) <= tokens).sum()))
