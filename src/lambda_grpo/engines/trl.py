"""λ-GRPO on TRL: `LambdaGRPOTrainer` is TRL's `GRPOTrainer` with a `credit`.

Three hooks, each calls `super()` and copies no body:

1. `_calculate_rewards` sees the completions' ids and rewards, which nothing later does: keep them.
2. `_generate_and_score_completions` builds the trees while rows still lie in group order, puts the credit's
   advantages (B, T) in place of TRL's (B,), and adds the weights (B, T) to the batch; TRL then buffers,
   shuffles and splits them like its own tensors.
3. `_compute_loss` lets TRL compute its loss, whichever it is. The gradient that flows into the log-probs is
   scaled by the weights, which is the same as scaling each token's term, KL included. For
   sequence-level ratios this gradient scaling *is* our definition of λ-GRPO. The entropy bonus and the MoE
   auxiliary loss stay unweighted.

Tested with trl 1.16.0.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from trl import GRPOConfig, GRPOTrainer

from lambda_grpo import measures
from lambda_grpo.credit import get_credit
from lambda_grpo.errors import InputError
from lambda_grpo.runs import Rollouts, write_rollouts
from lambda_grpo.tree import ProcessTree


@dataclass
class LambdaGRPOConfig(GRPOConfig):
    """TRL's `GRPOConfig` plus the credit. Every other field keeps TRL's meaning and default.

    Attributes:
        credit: name of the credit, a key of `lambda_grpo.credit.CREDITS`.
        credit_kwargs: the credit's own parameters, checked against its signature.
        save_rollouts: write every generation batch to `output_dir/rollouts/*.parquet`.
    """

    credit: str = field(default="lambda_grpo", metadata={"help": "Name of the credit, e.g. grpo."})
    credit_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "The credit's own parameters, as JSON."}
    )
    save_rollouts: bool = field(
        default=False, metadata={"help": "Write every generation batch to output_dir/rollouts."}
    )

    # Tells transformers which fields it may get as a JSON string.
    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "credit_kwargs"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.credit_kwargs, str):
            raise InputError(f"credit_kwargs: expected a JSON object, got {self.credit_kwargs!r}")
        get_credit(self.credit, self.credit_kwargs)
        rows = self.per_device_train_batch_size * self.steps_per_generation
        if self.world_size > 1 and rows % self.num_generations:
            raise InputError(
                f"a group of {self.num_generations} completions would straddle processes: each of the "
                f"{self.world_size} processes holds {rows} rows (per_device_train_batch_size × "
                "steps_per_generation). Make that a multiple of num_generations."
            )


@dataclass(frozen=True)
class _Scored:
    """What `_calculate_rewards` saw: this process's rows, rewards of all processes."""

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    rewards_per_func: torch.Tensor


class LambdaGRPOTrainer(GRPOTrainer):
    """`GRPOTrainer` whose tokens get the credit that `LambdaGRPOConfig.credit` names.

    Takes what `GRPOTrainer` takes. Logs beside TRL's metrics, each step: `tree/path_depth`,
    `tree/intermediate_proportion`, `tree/shared_tokens` (share of tokens with |λ| > 1),
    `tree/flat_groups` (share), `credit/mean_weight`, `credit/weighted_loss` (TRL's loss with each token's
    term weighted; TRL's own `loss` stays unweighted), and the shares of completions that stay in the tree but
    contribute nothing: `credit/unscorable` (no reward function scored them) and `credit/truncated` (all
    their tokens masked).
    """

    _tag_names = ["trl", "lambda-grpo"]

    _scored: _Scored  # the generation batch at hand
    _weights: torch.Tensor | None = None  # (B, T) while the loss of a micro-batch is computed
    _logps: torch.Tensor  # (B, T) that micro-batch's log-probs

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: Any = None, *rest: Any, **kwargs: Any
    ) -> None:
        if args is not None and not isinstance(args, LambdaGRPOConfig):
            raise InputError(f"args: expected a LambdaGRPOConfig, got {type(args).__name__}")
        super().__init__(model, reward_funcs, args or LambdaGRPOConfig(), *rest, **kwargs)

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._scored = _Scored(prompts, completions, completion_ids_list, rewards)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        scored = self._scored
        mode = "train" if self.model.training else "eval"
        size = self.num_generations if mode == "train" else self.num_generations_eval
        groups = np.arange(len(scored.completion_ids)) // size
        trees = ProcessTree.build_many(scored.completion_ids, groups)
        masks = self._masks(batch, trees, size)
        rewards, unscorable = self._local_rewards(scored)
        own_advantages = batch["advantages"].cpu().numpy()

        advantages = np.zeros(tuple(batch["completion_ids"].shape), np.float32)
        weights = np.zeros_like(advantages)
        credit = partial(get_credit(self.args.credit), **(self.args.credit_kwargs or {}))
        for g, (tree, mask) in enumerate(zip(trees, masks, strict=True)):
            rows = slice(g * size, (g + 1) * size)
            result = credit(tree, rewards[rows], advantages=own_advantages[rows], mask=mask)
            tokens = slice(result.weight.shape[1])
            advantages[rows, tokens] = result.advantage
            weights[rows, tokens] = result.weight
        device = batch["advantages"].device
        batch["advantages"] = torch.from_numpy(advantages).to(device)
        batch["credit_weights"] = torch.from_numpy(weights).to(device)

        self._log_trees(mode, trees, masks, weights)
        self._log_mean(mode, "credit/unscorable", unscorable.sum(), len(groups))
        if self.args.save_rollouts and mode == "train":
            self._save_rollouts(scored, groups, rewards, own_advantages)
        return batch

    def _masks(self, batch: dict[str, Any], trees: list[ProcessTree], size: int) -> list[np.ndarray | None]:
        """Each group's (G, T) mask of the tokens that enter the loss; None where all of them do."""
        if "tool_mask" not in batch and not self.mask_truncated_completions:
            return [None] * len(trees)
        mask = (batch["completion_mask"] * batch.get("tool_mask", 1)).bool().cpu().numpy()
        return [mask[g * size : (g + 1) * size, : tree.step_index.shape[1]] for g, tree in enumerate(trees)]

    def _local_rewards(self, scored: _Scored) -> tuple[np.ndarray, np.ndarray]:
        """This process's rewards (B,), 0 where no function could score; and which rows those are."""
        count = len(scored.completion_ids)
        start = self.accelerator.process_index * count
        per_func = scored.rewards_per_func[start : start + count]
        rewards = (per_func * self.reward_weights.to(per_func.device)).nansum(dim=1)
        return rewards.cpu().numpy(), per_func.isnan().all(dim=1).cpu().numpy()

    def _log_trees(
        self, mode: str, trees: list[ProcessTree], masks: list[np.ndarray | None], weights: np.ndarray
    ) -> None:
        pairs = list(zip(trees, masks, strict=True))
        counted = np.concatenate([measures.counted(*pair) for pair in pairs])
        depth = np.concatenate([measures.path_depth(*pair) for pair in pairs])
        proportion = np.concatenate([measures.intermediate_proportion(*pair) for pair in pairs])
        shared = sum(measures.shared_tokens(*pair) for pair in pairs)
        flat = sum(measures.is_flat(tree) for tree in trees)
        lengths = np.concatenate([tree.lengths for tree in trees])
        tokens = lengths.sum()
        if masks[0] is not None:
            tokens = sum(tree.policy_tokens(mask).sum() for tree, mask in pairs)
        self._log_mean(mode, "tree/path_depth", depth[counted].sum(), counted.sum())
        self._log_mean(mode, "tree/intermediate_proportion", proportion[counted].sum(), counted.sum())
        self._log_mean(mode, "tree/shared_tokens", shared, tokens)
        self._log_mean(mode, "tree/flat_groups", flat, len(trees))
        self._log_mean(mode, "credit/mean_weight", weights.sum(), tokens)
        self._log_mean(mode, "credit/truncated", (lengths > 0).sum() - counted.sum(), len(counted))

    def _log_mean(self, mode: str, name: str, total: float, count: float) -> None:
        """Append total / count to TRL's metrics, both summed over processes."""
        if self.accelerator.num_processes > 1:
            sums = torch.tensor([total, count], dtype=torch.float64, device=self.accelerator.device)
            total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._metrics[mode][name].append(float(total) / max(float(count), 1.0))

    def _save_rollouts(
        self, scored: _Scored, groups: np.ndarray, rewards: np.ndarray, advantages: np.ndarray
    ) -> None:
        rank = self.accelerator.process_index
        write_rollouts(
            self.args.output_dir,
            Rollouts(
                step=self.state.global_step,
                groups=groups + rank * (groups[-1] + 1),
                prompts=scored.prompts,
                completions=scored.completions,
                token_ids=scored.completion_ids,
                rewards=rewards,
                advantages=advantages,
            ),
            rank=rank,
        )

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._weights is not None and logps.requires_grad:
            weights = self._weights
            logps.register_hook(lambda grad: (grad * weights).to(grad.dtype))
        self._logps = logps
        return logps, entropies, aux_loss

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
        change = loss.new_zeros((), dtype=torch.float64)
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
            if grad is None:
                continue
            factor = leaf.detach().double()
            if name == "ref_per_token_logps":
                delta = factor - self._logps.detach().double()
                factor = torch.where(delta.abs() < 1e-6, delta / 2, 1 - delta / torch.expm1(delta))
            change += ((weights - 1) * grad * factor).sum()
        return loss.item() + change.item()
