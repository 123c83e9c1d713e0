"""TRL's trainer, guarded against what goes wrong in training: docs/hazards.md lists it all.

Where the norm of the gradients is infinite or NaN, the weights and the optimiser stay as they are, and
training goes on with the next batch. `max_skipped_steps` such steps in a row end it. With fp16 those do not
count by which the gradient scaler finds its scale. Tested with trl 1.16.0.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lambda_grpo.engines.trl.checkpoint_state import KeepsState
from lambda_grpo.engines.trl.reward_limits import guarded
from lambda_grpo.errors import LambdaGRPOError


class Guarded(KeepsState):
    """`GRPOTrainer` that names a reward function that fails, and skips steps without finite gradients.

    Logs `hazards/skipped_steps`, the share of steps that were skipped.
    """

    _skipped_in_row = 0
    _scale_at_skip = math.inf  # the gradient scaler's, at the last of the skipped steps in a row
    reward_funcs: list[Any]
    _rewards: torch.Tensor  # (rows of all processes,), of the generation batch at hand; NaN: none could score

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reward_funcs = [
            function if isinstance(function, nn.Module) else guarded(function, name, self.args.reward_timeout)
            for function, name in zip(self.reward_funcs, self.reward_func_names, strict=True)
        ]

    def kept_state(self) -> dict[str, Any]:
        return super().kept_state() | {"skipped_in_row": self._skipped_in_row}

    def load_kept_state(self, kept: Mapping[str, Any]) -> None:
        super().load_kept_state(kept)
        self._skipped_in_row = kept["skipped_in_row"]

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        completion_ids, *rest = super()._generate_single_turn(*args, **kwargs)
        check_answered(completion_ids)
        return completion_ids, *rest

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        per_function: torch.Tensor = super()._calculate_rewards(*args, **kwargs)
        self._rewards = (per_function * self.reward_weights.to(per_function.device)).nansum(dim=1)
        self._rewards[per_function.isnan().all(dim=1)] = torch.nan
        return per_function

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """Equal rewards give no advantage: TRL's are up to 2e-3 then, by the rounding of the mean.

        Adam would make a step of full size of them, should there be nothing else.
        """
        batch = super()._generate_and_score_completions(inputs)
        if self.multi_objective_aggregation == "sum_then_normalize":
            size = self.num_generations if self.model.training else self.num_generations_eval
            groups = self._rewards.view(-1, size)
            scored = ~groups.isnan()  # TRL gives 0 to the others itself
            highest = groups.masked_fill(~scored, -torch.inf).amax(dim=1)
            lowest = groups.masked_fill(~scored, torch.inf).amin(dim=1)
            equal = (highest <= lowest).repeat_interleave(size)
            mine = len(batch["advantages"]) * self.accelerator.process_index
            batch["advantages"][equal[mine : mine + len(batch["advantages"])]] = 0
        return batch

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Called once a step, after clipping and before the optimiser."""
        norm = super()._get_grad_norm(model, grad_norm)
        finite = norm is None or math.isfinite(norm)
        if finite:
            self._skipped_in_row, self._scale_at_skip = 0, math.inf
        elif not self._scale_falls():
            self._skipped_in_row += 1
        self._metrics["train"]["hazards/skipped_steps"].append(0.0 if finite else 1.0)
        if finite:
            return norm
        if self._skipped_in_row >= self.args.max_skipped_steps:
            raise LambdaGRPOError(
                f"the gradients were not finite in {self._skipped_in_row} steps in a row, up to step "
                f"{self.state.global_step + 1}, so training stops. The weights are those before these steps. "
                "Lower learning_rate, look at the rewards, or train in float32"
            )
        for parameter in model.parameters():
            parameter.grad = None  # optimisers pass over parameters without a gradient
        return norm

    def _scale_falls(self) -> bool:
        """Whether fp16's gradient scaler answers a step that is skipped by a lower scale, which may mend it.

        It multiplies the loss by 65536 at first, and halves that after each overflow. Example: if gradients
        overflow above 16, it skips 12 steps, at 65536, 32768, …, 32. At 1 the loss is not enlarged any more.
        """
        scaler = self.accelerator.scaler
        if scaler is None:
            return False
        before, self._scale_at_skip = self._scale_at_skip, scaler.get_scale()
        return 1 < self._scale_at_skip < before


def check_answered(completion_ids: Sequence[Sequence[int]]) -> None:
    """Raise if a completion has no token at all: TRL would fail with an IndexError.

    Raises:
        LambdaGRPOError: naming the completion.
    """
    for i, ids in enumerate(completion_ids):
        if len(ids) == 0:
            raise LambdaGRPOError(
                f"completion #{i} of {len(completion_ids)} has no tokens, which TRL cannot train on: an "
                "empty answer has its end-of-sequence token. Let generation return that (stop strings "
                "drop it)"
            )
