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
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from lambda_grpo import measures
from lambda_grpo.credit import get_credit
from lambda_grpo.engines.trl.checkpoint_state import Resumable
from lambda_grpo.engines.trl.config import LambdaGRPOConfig
from lambda_grpo.engines.trl.guards import Guarded
from lambda_grpo.engines.trl.packing import TreePacking
from lambda_grpo.engines.trl.ranks import check_agreement, checked_rollouts
from lambda_grpo.errors import InputError
from lambda_grpo.training.run_folder import Rollouts, write_rollouts
from lambda_grpo.tree import ProcessTree


@dataclass(frozen=True)
class _Scored:
    """What `_calculate_rewards` saw: this process's rows."""

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]


@dataclass(frozen=True)
class _Rows:
    """Completions of whole groups: this process's, and where a group straddles processes all of that group.

    Attributes:
        ids: R lists of the completion's token ids, as generated.
        advantages, rewards: (R,) TRL's own; a reward is NaN where no function could score.
        masks: R bool arrays as long as the ids, the tokens that enter the loss; None: all of them.
        contexts: R prompts, as bytes of their ids; None: all prompts of a group are the same.
        first: number of the first row in the batch of all processes.
        mine: the rows of this process.
    """

    ids: list[list[int]]
    advantages: np.ndarray
    rewards: np.ndarray
    masks: list[np.ndarray] | None
    contexts: list[bytes] | None
    first: int
    mine: slice


class LambdaGRPOTrainer(TreePacking, Resumable, Guarded):
    """`GRPOTrainer` whose tokens get the credit that `LambdaGRPOConfig.credit` names.

    Takes what `GRPOTrainer` takes. Logs beside TRL's metrics, each step: `tree/path_depth`,
    `tree/intermediate_proportion`, `tree/shared_tokens` (share of tokens with |λ| > 1),
    `tree/flat_groups` (share), `credit/mean_weight`, `credit/weighted_loss` (TRL's loss with each token's
    term weighted; TRL's own `loss` stays unweighted), and the shares of completions that stay in the tree but
    contribute nothing: `credit/unscorable` (no reward function scored them) and `credit/truncated` (all
    their tokens masked). With tree packing also `tree/packed` (share of micro-batches) and
    `tree/raw_per_unique` tokens.
    """

    _tag_names = ["trl", "lambda-grpo"]

    rollout_func: Any
    _scored: _Scored  # the generation batch at hand
    _weights: torch.Tensor | None = None  # (B, T) while the loss of a micro-batch is computed
    _logps: torch.Tensor  # (B, T) that micro-batch's log-probs
    _saved = (-1, 0)  # step and number of the last generation batch in rollouts/

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: Any = None, *rest: Any, **kwargs: Any
    ) -> None:
        if args is not None and not isinstance(args, LambdaGRPOConfig):
            raise InputError(f"args: expected a LambdaGRPOConfig, got {type(args).__name__}")
        super().__init__(model, reward_funcs, args or LambdaGRPOConfig(), *rest, **kwargs)
        if self.rollout_func is not None:
            self.rollout_func = checked_rollouts(self.rollout_func)

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._scored = _Scored(prompts, completions, completion_ids_list)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        mode = "train" if self.model.training else "eval"
        size = self.num_generations if mode == "train" else self.num_generations_eval
        rows = self._rows(batch, size)
        trees = ProcessTree.build_many(rows.ids, [i // size for i in range(len(rows.ids))], rows.contexts)
        masks = [_group_mask(tree, rows.masks, g * size) for g, tree in enumerate(trees)]
        width = max(batch["completion_ids"].shape[1], *(tree.step_index.shape[1] for tree in trees))
        advantages, weights = np.zeros((2, len(rows.ids), width), np.float32)
        credit = partial(get_credit(self.args.credit), **(self.args.credit_kwargs or {}))
        rewards = np.where(np.isnan(rows.rewards), 0, rows.rewards)
        for g, (tree, mask) in enumerate(zip(trees, masks, strict=True)):
            group = slice(g * size, (g + 1) * size)
            result = credit(tree, rewards[group], advantages=rows.advantages[group], mask=mask)
            tokens = slice(result.weight.shape[1])
            advantages[group, tokens] = result.advantage
            weights[group, tokens] = result.weight

        like = batch["advantages"]
        for name, values in (("advantages", advantages), ("credit_weights", weights)):
            mine = values[rows.mine, : batch["completion_ids"].shape[1]]
            batch[name] = torch.from_numpy(np.ascontiguousarray(mine)).to(like.device)
        self._log_credit(mode, rows, trees, masks, weights)
        if self.args.save_rollouts and mode == "train":
            self._save_rollouts(rows, size)
        return batch

    def _rows(self, batch: dict[str, Any], size: int) -> _Rows:
        """What TRL generated and scored, with the rows of other processes where a group needs them."""
        ids = self._scored.completion_ids
        count = len(ids)
        check_agreement(self.accelerator, count, "tool_mask" in batch)
        first = start = self.accelerator.process_index * count
        straddles = self.accelerator.num_processes > 1 and count % size > 0
        masks = None
        if "tool_mask" in batch or self.mask_truncated_completions:
            in_loss = (batch["completion_mask"] * batch.get("tool_mask", 1)).bool().cpu().numpy()
            masks = [row[: len(own)] for row, own in zip(in_loss, ids, strict=True)]
        contexts = _contexts(batch, 1 if straddles else size)
        advantages = batch["advantages"].cpu().numpy()
        end = start + count
        if straddles:
            first, end = first - first % size, -(-end // size) * size
            ids = gather_object(ids)[first:end]
            advantages = self.accelerator.gather(batch["advantages"]).cpu().numpy()[first:end]
            masks = None if masks is None else gather_object(masks)[first:end]
            contexts = gather_object(contexts)[first:end]
        mine = slice(start - first, start - first + count)
        return _Rows(ids, advantages, self._rewards[first:end].cpu().numpy(), masks, contexts, first, mine)

    def _log_credit(
        self,
        mode: str,
        rows: _Rows,
        trees: list[ProcessTree],
        masks: list[np.ndarray | None],
        weights: np.ndarray,
    ) -> None:
        size = len(rows.ids) // len(trees)
        ours = -(-rows.mine.start // size)  # a group counts where its first completion lies
        totals = measures.totals(trees[ours:], masks[ours:])
        mine = rows.rewards[rows.mine]
        for name, total, count in (
            ("tree/path_depth", totals.path_depth, totals.counted),
            ("tree/intermediate_proportion", totals.intermediate_proportion, totals.counted),
            ("tree/shared_tokens", totals.shared_tokens, totals.tokens),
            ("tree/flat_groups", totals.flat_groups, totals.groups),
            ("credit/mean_weight", float(weights[ours * size :].sum()), totals.tokens),
            ("credit/truncated", totals.masked, totals.counted + totals.masked),
            ("credit/unscorable", int(np.isnan(mine).sum()), len(mine)),
        ):
            self._log_mean(mode, name, total, count)

    def _log_mean(self, mode: str, name: str, total: float, count: float) -> None:
        """Append total / count to TRL's metrics, both summed over processes."""
        if self.accelerator.num_processes > 1:
            sums = torch.tensor([total, count], dtype=torch.float64, device=self.accelerator.device)
            total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._metrics[mode][name].append(float(total) / max(float(count), 1.0))

    def _save_rollouts(self, rows: _Rows, size: int) -> None:
        """Write the groups whose first completion lies here, whole."""
        prompts, completions = self._scored.prompts, self._scored.completions
        if len(rows.ids) > len(prompts):  # groups straddle processes, and so on each of them
            there = slice(rows.first, rows.first + len(rows.ids))
            prompts, completions = gather_object(prompts)[there], gather_object(completions)[there]
        ours = slice(-(-rows.mine.start // size) * size, len(rows.ids))
        step, (last, number) = self.state.global_step, self._saved
        batch = number + 1 if step == last else 0  # several, where steps_per_generation is below accumulation
        self._saved = step, batch
        earlier = batch * self.args.generation_batch_size
        write_rollouts(
            self.args.output_dir,
            Rollouts(
                step=step,
                batch=batch,
                groups=(earlier + rows.first + np.arange(len(rows.ids)))[ours] // size,
                prompts=prompts[ours],
                completions=completions[ours],
                token_ids=rows.ids[ours],
                rewards=rows.rewards[ours],
                advantages=rows.advantages[ours],
            ),
            rank=self.accelerator.process_index,
        )

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        scores: Any = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        logps = scores[0]
        if self._weights is not None:
            weights, self._logps = self._weights, logps
            logps.register_hook(lambda grad: (grad * weights).to(grad.dtype))
        return scores

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if not torch.is_grad_enabled():  # evaluation: there is no gradient to weight
            return super()._compute_loss(model, inputs)
        leaves: dict[str, torch.Tensor] = {
            name: inputs[name].detach().requires_grad_()
            for name in ("advantages", "ref_per_token_logps")
            if name in inputs
        }
        self._weights = inputs["credit_weights"]
        try:
            loss = super()._compute_loss(model, {**inputs, **leaves})
        finally:
            self._weights = None
        weighted = self._weighted_loss(loss, inputs["credit_weights"], leaves)
        del self._logps
        steps = self.current_gradient_accumulation_steps  # TRL's loss is a share of the whole step's
        self._log_mean("train", "credit/weighted_loss", weighted * steps, 1)
        return loss

    def _weighted_loss(
        self, loss: torch.Tensor, weights: torch.Tensor, leaves: dict[str, torch.Tensor]
    ) -> float:
        """The value of `loss` with each token's term multiplied by its weight.

        TRL sums the terms before we see them; their gradients give them back. A policy term is positively
        homogeneous in its advantage, so it is A · ∂loss/∂A (Euler). A KL term is
        c·(exp Δ - Δ - 1) with Δ = ref - logp, and ∂loss/∂ref is c·(exp Δ - 1).
        """
        grads = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
        terms = loss.new_zeros(())
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
            if grad is None:
                continue
            factor = leaf.detach()
            if name == "ref_per_token_logps":
                delta = (factor - self._logps.detach()).double()
                factor = torch.where(delta.abs() < 1e-6, delta / 2, 1 - delta / torch.expm1(delta))
            terms = terms + grad * factor
        return float(loss.detach() + ((weights - 1) * terms).sum())


def _contexts(batch: dict[str, Any], size: int) -> list[bytes] | None:
    """Each row's prompt, as the bytes of its ids; None if all prompts are the same in each group of `size`.

    With `size` 1 there is nothing to compare, and every row gets its prompt.
    """
    ids, mask = batch["prompt_ids"], batch["prompt_mask"]
    if size > 1:
        grouped = torch.cat([ids, mask], dim=1).view(-1, size, 2 * ids.shape[1])
        if (grouped == grouped[:, :1]).all():
            return None
    return [row[real].cpu().numpy().tobytes() for row, real in zip(ids, mask.bool(), strict=True)]


def _group_mask(tree: ProcessTree, masks: list[np.ndarray] | None, first: int) -> np.ndarray | None:
    """The (G, T) mask of the group whose rows begin at `first`."""
    if masks is None:
        return None
    mask = np.zeros(tree.step_index.shape, bool)
    for i, row in enumerate(masks[first : first + len(mask)]):
        mask[i, : len(row)] = row
    return mask
