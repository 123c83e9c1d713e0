"""Tree packing in TRL's trainer: the policy, old and reference passes run over the unique tokens only.

`TreePacking` is `GRPOTrainer` with two changes; `off` is TRL to the bit.

1. `_get_per_token_logps_and_entropies`, which serves all three passes, packs a micro-batch where that pays.
   Losses see the same (B, T) log-probs and entropies as before, so all of TRL's go on working.
2. TRL shuffles the rows of a generation batch before it cuts micro-batches from it; here whole groups are
   shuffled, for only rows that run together can share tokens.

What cannot be packed (active dropout, layers that cannot fork, images, a mixture of experts' auxiliary loss)
runs plainly, after one warning that says why.
"""

import logging
import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from trl import GRPOTrainer

from lambda_grpo.errors import InputError
from lambda_grpo.forkable import inner_model
from lambda_grpo.packed_rows import pack_rows
from lambda_grpo.packing import PackedTree, tree_logps_and_entropies
from lambda_grpo.packing_cost import WORTHWHILE, predicted_gain

Mode = Literal["auto", "on", "off"]
MODES: tuple[str, ...] = get_args(Mode)

_GROUP = "group"  # (B,) in the batch: the row's group

_logger = logging.getLogger(__name__)

Scores = tuple[Tensor, Tensor | None, Tensor | None]  # log-probs, entropies, auxiliary loss


class TreePacking(GRPOTrainer):
    """`GRPOTrainer` with `args.tree_packing`; logs `tree/packed` and `tree/raw_per_unique` each step."""

    _unpackable = False  # known after the first try

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **inputs: Any,
    ) -> Scores:
        """As TRL's; `batch_size` is the number of rows that run together, packed or not."""
        plain = super()._get_per_token_logps_and_entropies
        options = {"compute_entropy": compute_entropy, "compute_aux_loss": compute_aux_loss, **inputs}
        others = sorted(name for name, value in inputs.items() if value is not None)
        if compute_aux_loss:
            others.append("the auxiliary loss of a mixture of experts, which counts tokens,")
        if self.args.tree_packing == "off" or self._unpackable or others:
            if others and self.args.tree_packing != "off":
                self._give_up(f"{', '.join(others)} cannot be packed")
            return plain(model, input_ids, attention_mask, logits_to_keep, batch_size, **options)
        parts: list[Scores] = []
        for start in range(0, len(input_ids), batch_size or len(input_ids)):
            rows = slice(start, start + (batch_size or len(input_ids)))
            chunk = input_ids[rows], attention_mask[rows], logits_to_keep
            parts.append(self._packed(model, *chunk) or plain(model, *chunk, **options))
        logps, entropies, _ = zip(*parts, strict=True)
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def _packed(self, model: Any, ids: Tensor, mask: Tensor, width: int) -> Scores | None:
        """Log-probs and entropies (B, width) by way of the packed tree; None where plain rows are better."""
        try:
            tree = None if self._unpackable else pack_rows(ids, mask, width)
            gain = 0.0 if tree is None else self._gain(model, tree, ids)
            worthwhile = self._all_processes_agree(gain >= WORTHWHILE)
            if tree is not None and torch.is_grad_enabled():
                self._metrics["train"]["tree/packed"].append(float(worthwhile))
                self._metrics["train"]["tree/raw_per_unique"].append(tree.raw_tokens / tree.num_tokens)
            if tree is None or not worthwhile:
                return None
            with self.accelerator.autocast():
                logps, entropies = tree_logps_and_entropies(model, tree, temperature=self.temperature)
        except InputError as reason:
            self._give_up(str(reason))
            return None
        return logps, entropies, None

    def _gain(self, model: Any, tree: PackedTree, ids: Tensor) -> float:
        """How many times faster the packed tree should be; infinite if packing is asked for."""
        if self.args.tree_packing == "on":
            return math.inf
        if ids.device.type != "cpu":  # costs were fitted on CPUs only
            return 0.0
        return predicted_gain(tree, inner_model(model).config.get_text_config(), projected=ids.numel())

    def _all_processes_agree(self, yes: bool) -> bool:
        """Sharded models gather their weights layer by layer, for which all processes must go the same way."""
        if self.accelerator.num_processes == 1:
            return yes
        votes = self.accelerator.gather(torch.tensor([yes], device=self.accelerator.device))
        return bool(votes.all())

    def _give_up(self, reason: str) -> None:
        self._unpackable = True
        if self.accelerator.is_main_process:
            _logger.warning("Tree packing is off, the rows run plainly: %s", reason)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        if self.model.training and self.args.tree_packing != "off":
            count = len(batch["completion_ids"])
            first = self.accelerator.process_index * count
            batch[_GROUP] = torch.arange(first, first + count) // self.num_generations
        return batch

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        buffered = self._buffered_inputs
        if buffered is None or buffered is before or _GROUP not in buffered[0]:
            return inputs
        self._buffered_inputs = whole_groups(buffered)
        micro_batch: dict[str, Any] = self._buffered_inputs[self._step % len(buffered)]
        return micro_batch


def whole_groups(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of shuffled micro-batches, dealt out again so that the rows of a group are neighbours.

    Groups keep the order in which the shuffle brought up their first rows, so theirs is random too. Tensors with
    a dimension are taken for rows; images, which are not in rows, are left where they are.

    >>> shuffled = [{"group": torch.tensor([1, 0])}, {"group": torch.tensor([0, 1])}]
    >>> [batch["group"].tolist() for batch in whole_groups(shuffled)]
    [[1, 1], [0, 0]]
    """
    if len(batches) == 1 or "pixel_values" in batches[0]:
        return batches
    groups = torch.cat([batch[_GROUP] for batch in batches])
    seen: dict[int, int] = {}
    order = torch.tensor([seen.setdefault(group, len(seen)) for group in groups.tolist()]).argsort(stable=True)
    count = len(order) // len(batches)
    dealt: list[dict[str, Any]] = [dict(batch) for batch in batches]
    for name, value in batches[0].items():
        if isinstance(value, Tensor) and value.ndim > 0:
            rows = torch.cat([batch[name] for batch in batches])[order]
            for i, batch in enumerate(dealt):
                batch[name] = rows[i * count : (i + 1) * count]
    return dealt
