"""Tree packing in TRL's trainer: the policy, old and reference passes run over the unique tokens only.

`TreePacking` is `GRPOTrainer` with two changes; `off` is TRL to the bit.

1. `_get_per_token_logps_and_entropies`, which serves all three passes, packs a micro-batch if that pays, by
   what was timed on the first one that has a gradient (`packing_trial.py`); passes before it run plainly.
   Losses see the same (B, T) log-probs and entropies as before, so all of TRL's go on working.
2. TRL shuffles the rows of a generation batch before it cuts micro-batches from it; here whole groups are
   shuffled, because only rows that run together can share tokens.

What cannot be packed (active dropout, layers that cannot fork, images, a mixture of experts' auxiliary loss)
runs plainly, after one warning that says why. Each model is tried once, apart from training
(`packing_probe.py`). All ranks then do the same, and an error in a packed pass is an error.
"""

import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from torch import Tensor

from lambda_grpo.engines.trl.checkpoint_state import KeepsState
from lambda_grpo.engines.trl.packing_probe import OWN_WAYS, why_not_packed
from lambda_grpo.engines.trl.packing_trial import Trial, works
from lambda_grpo.errors import InputError
from lambda_grpo.packing import PackedTree, tree_logps_and_entropies
from lambda_grpo.packing.cost import Calibration
from lambda_grpo.packing.positions import padding_not_counted
from lambda_grpo.packing.proof import PaddedRows
from lambda_grpo.packing.rows import pack_rows_within
from lambda_grpo.packing.supported import check_dropout, check_layers, check_tokens, inner_model
from lambda_grpo.whole_files import write_json

MODES = ("auto", "on", "off")

_GROUP = "group"  # (B,) in the batch: the row's group

_logger = logging.getLogger(__name__)

PassOutput = tuple[Tensor, Tensor | None, Tensor | None]  # log-probs, entropies, auxiliary loss


class TreePacking(KeepsState):
    """`GRPOTrainer` with `args.tree_packing`; logs `tree/packed` and `tree/raw_per_unique` each step."""

    _buffered_inputs: list[dict[str, Any]] | None
    _unpackable = False  # on this rank, and so on all
    _proven: tuple[str, ...] = ()  # models, each in training or evaluation, that the probe found right
    _learned: dict[str, Any] | None = None  # on the first micro-batch, and kept: so the same is packed

    def kept_state(self) -> dict[str, Any]:
        return super().kept_state() | {
            "packing": {
                "unpackable": self._unpackable,
                "proven": list(self._proven),
                "learned": self._learned,
            }
        }

    def load_kept_state(self, kept: Mapping[str, Any]) -> None:
        super().load_kept_state(kept)
        self._unpackable = kept["packing"]["unpackable"]
        self._proven = tuple(kept["packing"]["proven"])
        self._learned = kept["packing"]["learned"]

    @property
    def _may_pack(self) -> bool:
        return self.args.tree_packing != "off"

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
    ) -> PassOutput:
        """As TRL's; `batch_size` is the number of rows that run together, packed or not."""
        tokens = (input_ids, attention_mask, logits_to_keep)
        given = (model, *tokens, batch_size, compute_entropy, compute_aux_loss)
        if not self._may_pack:
            return super()._get_per_token_logps_and_entropies(*given, **inputs)
        plain = partial(self._plain_pass, *given, **inputs)
        for name in [name for name, value in inputs.items() if value is not None]:
            self._give_up(f"{name} cannot be packed")
        if compute_aux_loss:
            self._give_up("a mixture of experts' auxiliary loss counts every token as often as it occurs")
        if self._learned is None and not torch.is_grad_enabled():
            return plain()
        rows = PaddedRows(*tokens)
        trees = self._pack(rows, batch_size or len(input_ids))
        packable = bool(trees) and self._supports(model, trees)
        self._learn(packable, rows)
        worthwhile = packable and not self._unpackable and self._pays(model, trees, rows)
        if not self._all_pack(worthwhile, trees, partial(self._proves, model)):
            return plain()
        scores = [self._packed_pass(model, tree) for tree in trees]
        logps, entropies = (torch.cat(parts) for parts in zip(*scores, strict=True))
        return logps, entropies if compute_entropy else None, None

    def _plain_pass(self, model: Any, *args: Any, **inputs: Any) -> PassOutput:
        with padding_not_counted(inner_model(model)):
            return super()._get_per_token_logps_and_entropies(model, *args, **inputs)

    def _packed_pass(self, model: Any, tree: PackedTree) -> tuple[Tensor, Tensor]:
        with self.accelerator.autocast():
            return tree_logps_and_entropies(model, tree, temperature=self.temperature)

    def _pack(self, rows: PaddedRows, size: int) -> list[PackedTree]:
        """Trees of `size` rows each, or fewer, as `tokens_per_pass` says; none if they cannot be packed."""
        limit = self.args.tokens_per_pass
        parts = [slice(i, i + size) for i in range(0, len(rows.ids), size)]

        def packed(least: list[int]) -> list[list[PackedTree]]:
            if self._unpackable:
                return []
            return [
                pack_rows_within(rows.ids[at], rows.mask[at], rows.width, limit, passes)
                for at, passes in zip(parts, least, strict=True)
            ]

        try:
            chunks = packed([1] * len(parts))
        except InputError as reason:
            self._give_up(str(reason))
            chunks = []
        if limit and self.accelerator.num_processes > 1:  # all ranks run equally many passes
            passes = gather_object([[len(chunk) for chunk in chunks] or [1] * len(parts)])
            chunks = packed([max(counts) for counts in zip(*passes, strict=True)])
        return [tree for chunk in chunks for tree in chunk]

    def _all_pack(self, worthwhile: bool, trees: list[PackedTree], proves: Callable[[], bool]) -> bool:
        """Whether to pack. All ranks do the same, because sharded models gather weights layer by layer."""
        raw, unique = sum(tree.raw_tokens for tree in trees), sum(tree.num_tokens for tree in trees)
        if self.accelerator.num_processes > 1:
            mine = torch.tensor([worthwhile, raw, unique], device=self.accelerator.device)
            votes, raw, unique = self.accelerator.reduce(mine, reduction="sum").tolist()
            worthwhile = votes == self.accelerator.num_processes
        worthwhile = worthwhile and proves()
        if unique and torch.is_grad_enabled():
            self._metrics["train"]["tree/packed"].append(float(worthwhile))
            self._metrics["train"]["tree/raw_per_unique"].append(raw / unique)
        return worthwhile

    def _proves(self, model: Any) -> bool:
        """Whether a model gives right log-probs when it is packed; tried once, by all ranks together."""
        inner = inner_model(model)
        name = f"{type(inner).__name__} in {'training' if inner.training else 'evaluation'}"
        if name in self._proven:
            return True
        reason = why_not_packed(
            lambda tree: self._packed_pass(model, tree)[0],
            lambda rows: self._plain_pass(model, rows.ids, rows.mask, rows.width)[0],
            vocabulary=inner.get_input_embeddings().num_embeddings,
            device=inner.device,
            narrow=inner.dtype.itemsize < 4 or self.accelerator.mixed_precision != "no",
        )
        reason = next(filter(None, gather_object([reason])), "")
        if reason:
            self._give_up(reason)
        else:
            self._proven = (*self._proven, name)
        return not reason

    def _supports(self, model: Any, trees: list[PackedTree]) -> bool:
        """Whether a model can be packed at all; False, with a warning, if it cannot."""
        try:
            inner = inner_model(model)
            check_layers(inner)
            check_dropout(inner)
            for tree in trees:
                check_tokens(inner, torch.cat([tree.ids, tree.target]), tree.position)
        except InputError as reason:
            self._give_up(str(reason))
            return False
        return True

    def _pays(self, model: Any, trees: list[PackedTree], rows: PaddedRows) -> bool:
        """Whether packing should be faster, by shapes and by what was timed at the start of the run."""
        if self.args.tree_packing == "on" or self._learned is None:
            return True
        config, padded = inner_model(model).config.get_text_config(), rows.ids.shape[1]
        calibration = Calibration.from_numbers(self._learned["calibration"])
        try:
            both = [works(tree, config, len(tree.index) * padded, self._in_blocks) for tree in trees]
        except InputError as reason:
            self._give_up(str(reason))
            return False
        return calibration.gain([work for work, _ in both], [work for _, work in both]) >= 1

    @property
    def _in_blocks(self) -> bool:
        return bool(self.accelerator.device.type == "cuda")

    def _learn(self, packable: bool, rows: PaddedRows) -> None:
        """On the first update that all ranks can pack: prove packing right here, and time both ways.

        What is learned goes into the run folder at once. So a run that is killed before its first checkpoint,
        and begins anew, packs the same micro-batches.
        """
        if self._learned is not None:
            return
        rows = rows.answered()
        ready, off = zip(*gather_object([(packable and len(rows.ids) > 0, self._unpackable)]), strict=True)
        if any(off):  # for all ranks and for good
            self._unpackable, self._learned = True, {"reason": ""}
        if not all(ready):
            return
        path = Path(self.args.output_dir) / f"machine_speed_{self.accelerator.process_index}.json"
        found = json.loads(path.read_text("utf-8")) if path.exists() else {}
        circumstances = self._circumstances()
        if not all(gather_object([found.get("circumstances") == circumstances])):
            if not self._proves(self.model):
                return
            found = {"circumstances": circumstances} | self._try_out(rows)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, found)
        self._learned = found
        reason = next(filter(None, gather_object([found["reason"]])), "")
        if reason:
            self._give_up(reason)

    def _circumstances(self) -> dict[str, Any]:
        """What a trial holds for: another run in the same folder may have another model."""
        model, device = inner_model(self.model), self.accelerator.device
        return {
            "model": type(model).__name__,
            "weights": sum(parameter.numel() for parameter in model.parameters()),
            "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "dtype": str(model.dtype),
            "mixed_precision": self.accelerator.mixed_precision,
            "attention": str(model.config._attn_implementation),
            "gradient_checkpointing": self.args.gradient_checkpointing,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "tree_packing": self.args.tree_packing,
            **{name: version(name) for name in ("torch", "transformers", "lambda-grpo")},
        }

    def _try_out(self, rows: PaddedRows) -> dict[str, Any]:
        model = self.model
        reentrant = (self.args.gradient_checkpointing_kwargs or {}).get("use_reentrant", False)
        sharded = self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        trial = Trial(
            inner_model(model),
            plain=lambda part: self._plain_pass(model, part.ids, part.mask, part.width)[0],
            packed=lambda tree: self._packed_pass(model, tree)[0],
            temperature=self.temperature,
            differentiable=not sharded and not (self.args.gradient_checkpointing and reentrant),
            limit=self.args.tokens_per_pass,
            agreed=lambda number: max(gather_object([number])),
        )
        speed = Calibration(1.0)
        proof, reason = self._tried(partial(trial.proof, rows), sharded)
        if proof is not None and not proof.holds:
            reason = str(proof)
        # If it is wrong on one rank, none times anything: ranks that share weights must run the same passes.
        if self.args.tree_packing == "auto" and not any(gather_object([reason])):
            timed, reason = self._tried(partial(trial.calibration, rows, self._in_blocks), sharded)
            speed = timed or speed
        return {"reason": reason, "calibration": speed.as_numbers()}

    @staticmethod
    def _tried(part: Callable[[], Any], sharded: bool) -> tuple[Any, str]:
        """What a part of the trial found, and ""; or None and why it failed.

        Raises:
            Exception: ranks have lost each other, or share weights and so wait for this one.
        """
        try:
            return part(), ""
        except InputError as error:
            return None, str(error)
        except torch.distributed.DistError:
            raise
        except (MemoryError, *OWN_WAYS) as error:  # RuntimeError: also a device's memory, a kernel
            if sharded:
                raise
            return None, f"the trial failed: {type(error).__name__}: {error}"

    def _give_up(self, reason: str) -> None:
        if not self._unpackable:  # on whichever process it was: all of them run plainly then
            _logger.warning("Tree packing is off, the rows run plainly: %s", reason)
        self._unpackable = True

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        if self.model.training and self._may_pack:
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

    Groups keep the order in which the shuffle brought up their first rows, so theirs is random too. Tensors
    with a dimension are taken for rows; batches with images, which are not in rows, are left as they are.

    >>> shuffled = [{"group": torch.tensor([1, 0])}, {"group": torch.tensor([0, 1])}]
    >>> [batch["group"].tolist() for batch in whole_groups(shuffled)]
    [[1, 1], [0, 0]]
    """
    if len(batches) == 1 or "pixel_values" in batches[0]:
        return batches
    groups = torch.cat([batch[_GROUP] for batch in batches])
    seen: dict[int, int] = {}
    rank = torch.tensor([seen.setdefault(group, len(seen)) for group in groups.tolist()])
    order = rank.argsort(stable=True)
    count = len(order) // len(batches)
    dealt: list[dict[str, Any]] = [dict(batch) for batch in batches]
    for name, value in batches[0].items():
        if isinstance(value, Tensor) and value.ndim > 0:
            rows = torch.cat([batch[name] for batch in batches])[order]
            for i, batch in enumerate(dealt):
                batch[name] = rows[i * count : (i + 1) * count]
    return dealt
