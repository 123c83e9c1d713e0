"""λ-GRPO on TRL: `LambdaGRPOTrainer` is TRL's `GRPOTrainer` with a `credit`.

A group may straddle processes: then its rows are gathered, the tree is built on each of them, and each keeps
the credit of its own rows.

Three hooks, each calls `super()` and copies no body:

1. `_calculate_rewards` sees the completions' ids, which nothing later does: keep them (`Guarded` keeps the
   rewards).
2. `_generate_and_score_completions` builds the trees while rows still lie in group order, puts the credit's
   advantages (B, T) in place of TRL's (B,), and adds the weights (B, T) to the batch; TRL then buffers,
   shuffles and splits them like its own tensors.
3. `_compute_loss` lets TRL compute its loss, whichever it is. The gradient that flows into the log-probs is
   scaled by the weights, which is the same as scaling each token's term, KL included. For
   sequence-level ratios this gradient scaling *is* our definition of λ-GRPO. The entropy bonus and the MoE
   auxiliary loss stay unweighted.

Tested with trl 1.16.0.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from lambda_grpo import measures
from lambda_grpo.credit import credit_group, get_credit, takes_plan
from lambda_grpo.engines.trl.checkpoint_state import Resumable
from lambda_grpo.engines.trl.config import LambdaGRPOConfig
from lambda_grpo.engines.trl.guards import Guarded
from lambda_grpo.engines.trl.model_card import card_with_credit
from lambda_grpo.engines.trl.packing import TreePacking
from lambda_grpo.engines.trl.ranks import check_agreement, checked_rollouts
from lambda_grpo.engines.trl.sampling import TreeSampling
from lambda_grpo.errors import InputError
from lambda_grpo.rollouts.writing import Rollouts, write_rollouts
from lambda_grpo.tree import ProcessTree


@dataclass(frozen=True)
class _Scored:
    """What `_calculate_rewards` saw: this process's rows."""

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]


@dataclass(frozen=True)
class _Groups:
    """The groups that this rank gives credit, whole, because a tree needs every completion of its group.

    A group may straddle ranks; then each of them gathers all its rows. Example: 3 groups of 4 rows, 2 ranks.

        row of the batch     0  1  2  3    4  5  6  7    8  9 10 11
        rank that holds it   0  0  0  0    0  0  1  1    1  1  1  1

    Rank 1 holds rows 6 to 11. Its first group begins at row 4, so it gathers rows 4 to 11: `first_row` is 4
    and `own` is slice(2, 8). Rank 0 logs and writes the group that straddles, because that group's first row
    lies there: `begun_here` is slice(4, 8) on rank 1.

    Attributes:
        size: G, completions of a group.
        ids: R lists of the completion's token ids, as generated.
        advantages, rewards: (R,) TRL's own; a reward is NaN if no function could score the completion.
        masks: R bool arrays as long as the ids, the tokens that enter the loss; None: all of them.
        contexts: R prompts, as bytes of their ids; None: all prompts of a group are the same.
        first_row: number of the first row in the batch of all ranks.
        own: the rows of this rank.
    """

    size: int
    ids: list[list[int]]
    advantages: np.ndarray
    rewards: np.ndarray
    masks: list[np.ndarray] | None
    contexts: list[bytes] | None
    first_row: int
    own: slice

    @property
    def begun_here(self) -> slice:
        """The rows of the groups whose first completion lies on this rank."""
        return slice(-(-self.own.start // self.size) * self.size, len(self.ids))

    def trees(self) -> list[ProcessTree]:
        """One tree a group."""
        return ProcessTree.build_many(self.ids, [i // self.size for i in range(len(self.ids))], self.contexts)

    def mask(self, group: int, tree: ProcessTree) -> np.ndarray | None:
        """(G, T) the tokens of a group that enter the loss; None: all of them."""
        if self.masks is None:
            return None
        mask = np.zeros(tree.step_index.shape, bool)
        for i, row in enumerate(self.masks[group * self.size : (group + 1) * self.size]):
            mask[i, : len(row)] = row
        return mask


class LambdaGRPOTrainer(TreePacking, TreeSampling, Resumable, Guarded):
    """`GRPOTrainer` whose tokens get the credit that `LambdaGRPOConfig.credit` names.

    Takes what `GRPOTrainer` takes. Logs beside TRL's metrics, each step: `tree/path_depth`,
    `tree/intermediate_proportion`, `tree/shared_tokens` (share of tokens with |λ| > 1),
    `tree/flat_groups` (share), `credit/mean_weight`, and the shares of completions that stay in the tree but
    contribute nothing: `credit/unscorable` (no reward function scored them) and `credit/truncated` (all
    their tokens masked). In training also `tree/sampled_tokens`, the number of tokens drawn on all ranks, and
    `tree/distinct_completions` of a group. With tree packing also `tree/packed` (share of micro-batches) and
    `tree/raw_per_unique` tokens.
    """

    _tag_names = ["trl", "grpo", "lambda-grpo"]

    rollout_func: Any
    _scored: _Scored  # the generation batch at hand
    _weights: torch.Tensor | None = None  # (B, T) while the loss of a micro-batch is computed
    _saved = (-1, 0)  # step and number of the last generation batch in rollouts/

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: Any = None, *rest: Any, **kwargs: Any
    ) -> None:
        if args is not None and not isinstance(args, LambdaGRPOConfig):
            raise InputError(f"args: expected a LambdaGRPOConfig, got {type(args).__name__}")
        super().__init__(model, reward_funcs, args or LambdaGRPOConfig(), *rest, **kwargs)
        if self.rollout_func is not None:
            self.rollout_func = checked_rollouts(self.rollout_func)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL's model card, `README.md` of the output folder, with the credit and its citation."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            card = Path(self.args.output_dir) / "README.md"
            text = card_with_credit(card.read_text("utf-8"), self.args, self.state.log_history)
            card.write_text(text, "utf-8")

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._scored = _Scored(prompts, completions, completion_ids_list)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        mode = "train" if self.model.training else "eval"
        groups = self._whole_groups(
            batch, self.num_generations if mode == "train" else self.num_generations_eval
        )
        trees = groups.trees()
        masks = [groups.mask(g, tree) for g, tree in enumerate(trees)]
        advantages, weights = self._credit(groups, trees, masks, batch["completion_ids"].shape[1])
        like = batch["advantages"]
        for name, values in (("advantages", advantages), ("credit_weights", weights)):
            own = values[groups.own, : batch["completion_ids"].shape[1]]
            batch[name] = torch.from_numpy(np.ascontiguousarray(own)).to(like.device)
        self._log_credit(mode, groups, trees, masks, weights)
        if mode == "train":
            self._log_samples(groups, trees)
            if self.args.save_rollouts:
                self._save_rollouts(groups, _prompt_ids(batch))
            self._choose_next_forks(self._rewards.cpu().numpy(), self._scored.completion_ids)
        return batch

    def _whole_groups(self, batch: dict[str, Any], size: int) -> _Groups:
        """What TRL generated and scored, with the rows of other ranks if a group straddles."""
        ids = self._scored.completion_ids
        count = len(ids)
        check_agreement(self.accelerator, count, "tool_mask" in batch)
        start = self.accelerator.process_index * count
        straddles = self.accelerator.num_processes > 1 and count % size > 0
        masks = None
        if "tool_mask" in batch or self.mask_truncated_completions:
            in_loss = (batch["completion_mask"] * batch.get("tool_mask", 1)).bool().cpu().numpy()
            masks = [row[: len(own)] for row, own in zip(in_loss, ids, strict=True)]
        contexts = _contexts(batch, 1 if straddles else size)
        advantages = batch["advantages"].cpu().numpy()
        first, end = start, start + count
        if straddles:
            first, end = first - first % size, -(-end // size) * size
            ids = gather_object(ids)[first:end]
            advantages = self.accelerator.gather(batch["advantages"]).cpu().numpy()[first:end]
            masks = None if masks is None else gather_object(masks)[first:end]
            contexts = gather_object(contexts)[first:end]
        own = slice(start - first, start - first + count)
        rewards = self._rewards[first:end].cpu().numpy()
        return _Groups(size, ids, advantages, rewards, masks, contexts, first, own)

    def _credit(
        self, groups: _Groups, trees: list[ProcessTree], masks: list[np.ndarray | None], width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(R, T) advantages and weights, float32; T is at least `width`."""
        width = max(width, *(tree.step_index.shape[1] for tree in trees))
        advantages, weights = np.zeros((2, len(groups.ids), width), np.float32)
        credit = partial(get_credit(self.args.credit), **(self.args.credit_kwargs or {}))
        if takes_plan(credit):
            credit = partial(credit, plan=self._plan)
        for g, (tree, mask) in enumerate(zip(trees, masks, strict=True)):
            rows = slice(g * groups.size, (g + 1) * groups.size)
            result = credit_group(credit, tree, groups.rewards[rows], groups.advantages[rows], mask)
            tokens = slice(result.weight.shape[1])
            advantages[rows, tokens] = result.advantage
            weights[rows, tokens] = result.weight
        return advantages, weights

    def _log_credit(
        self,
        mode: str,
        groups: _Groups,
        trees: list[ProcessTree],
        masks: list[np.ndarray | None],
        weights: np.ndarray,
    ) -> None:
        begun = groups.begun_here
        totals = measures.totals(trees[begun.start // groups.size :], masks[begun.start // groups.size :])
        own = groups.rewards[groups.own]
        fractions = totals.fractions() | {
            "credit/mean_weight": (float(weights[begun].sum()), totals.tokens),
            "credit/truncated": (totals.masked, totals.counted + totals.masked),
            "credit/unscorable": (int(np.isnan(own).sum()), len(own)),
        }
        for name, (total, count) in fractions.items():
            self._log_mean(mode, name, total, count)

    def _log_samples(self, groups: _Groups, trees: list[ProcessTree]) -> None:
        """Log what was drawn for a step of training, and how the rewards of forked completions vary."""
        begun = groups.begun_here
        distinct = [len(np.unique(tree.leaf)) for tree in trees[begun.start // groups.size :]]
        self._log_mean("train", "tree/distinct_completions", sum(distinct), len(distinct))
        # The sum over ranks, not their mean.
        self._log_mean("train", "tree/sampled_tokens", self._sampled_tokens, self.accelerator.is_main_process)
        for name, (total, count) in self._branch_fractions(groups.rewards[begun]).items():
            self._log_mean("train", name, total, count)

    def _log_mean(self, mode: str, name: str, total: float, count: float) -> None:
        """Append total / count to TRL's metrics, both summed over processes."""
        if self.accelerator.num_processes > 1:
            sums = torch.tensor([total, count], dtype=torch.float64, device=self.accelerator.device)
            total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._metrics[mode][name].append(float(total) / max(float(count), 1.0))

    def _save_rollouts(self, groups: _Groups, prompt_ids: list[list[int]]) -> None:
        """Write the groups whose first completion lies here, whole."""
        prompts, completions = self._scored.prompts, self._scored.completions
        if len(groups.ids) > len(prompts):  # groups straddle ranks, and so on each of them
            there = slice(groups.first_row, groups.first_row + len(groups.ids))
            prompts, completions = gather_object(prompts)[there], gather_object(completions)[there]
            prompt_ids = gather_object(prompt_ids)[there]
        step, (last, number) = self.state.global_step, self._saved
        batch = number + 1 if step == last else 0  # several, if steps_per_generation is below accumulation
        self._saved = step, batch
        rows = batch * self.args.generation_batch_size + groups.first_row + np.arange(len(groups.ids))
        begun = groups.begun_here
        write_rollouts(
            self.args.output_dir,
            Rollouts(
                step=step,
                batch=batch,
                groups=rows[begun] // groups.size,
                prompts=prompts[begun],
                completions=completions[begun],
                token_ids=groups.ids[begun],
                rewards=groups.rewards[begun],
                advantages=groups.advantages[begun],
                prompt_ids=prompt_ids[begun],
                blocks=self._blocks(groups.ids[begun]),
            ),
            rank=self.accelerator.process_index,
        )

    def _blocks(self, ids: list[list[int]]) -> list[list[int]] | None:
        """For each token of whole groups the block that sampled it; None if nothing forks."""
        if not self._plan:
            return None
        size = self.num_generations
        numbers = self._plan.blocks(size, max(map(len, ids), default=0))
        return [numbers[i % size, : len(row)].tolist() for i, row in enumerate(ids)]

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        scores: Any = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._weights is not None and scores[0].requires_grad:
            weights = self._weights
            scores[0].register_hook(lambda grad: (grad * weights).to(grad.dtype))
        return scores

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if not torch.is_grad_enabled():  # evaluation: there is no gradient to weight
            return super()._compute_loss(model, inputs)
        self._weights = inputs["credit_weights"]
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._weights = None


def _contexts(batch: dict[str, Any], size: int) -> list[bytes] | None:
    """Each row's prompt, as the bytes of its ids; None if all prompts are the same in each group of `size`.

    With `size` 1 there is nothing to compare, and every row gets its prompt.
    """
    ids, mask = batch["prompt_ids"], batch["prompt_mask"]
    if size > 1:
        grouped = torch.cat([ids, mask], dim=1).view(-1, size, 2 * ids.shape[1])
        if (grouped == grouped[:, :1]).all():
            return None
    return [np.array(row).tobytes() for row in _prompt_ids(batch)]


def _prompt_ids(batch: dict[str, Any]) -> list[list[int]]:
    """Each row's prompt without its padding."""
    ids, mask = batch["prompt_ids"].cpu(), batch["prompt_mask"].bool().cpu()
    return [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
