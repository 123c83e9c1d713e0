"""Where completions fork in TRL's trainer: a fixed plan, or with `branch_depths: auto` one chosen each batch.

`Branching` is `GRPOTrainer` with `args.branch_depths`. It knows the plan of the batch at hand; the samplers
fork by it. Validation never forks. With `auto` the rewards and lengths of all ranks teach the chooser once a
batch is scored, so all ranks choose the same for the next one; what it learned is in every checkpoint.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn

from lambda_grpo.branching import BranchPlan, variance_components
from lambda_grpo.engines.trl.checkpoint_state import KeepsState
from lambda_grpo.engines.trl.scored_once import FirstRows, scored_once
from lambda_grpo.errors import InputError
from lambda_grpo.fork_chooser import ForkChooser
from lambda_grpo.sampling import check_can_fork

Fractions = dict[str, tuple[float, float]]  # what is logged, by name: a sum and the count that divides it

_logger = logging.getLogger(__name__)


class Branching(KeepsState):
    """`GRPOTrainer` whose completions fork in training, as `args.branch_depths` and `branch_factors` say.

    Logs, each step with forks, `branch/variance_between` and `branch/variance_within`: how much of the
    rewards' variance is decided before the first fork, and after it. With `auto` also, each step,
    `branch/depth` (0: no fork) and `branch/factor` (1: no fork).
    """

    num_generations: int
    tools: Any
    rollout_func: Any
    reward_funcs: list[Any]
    _chooser: ForkChooser | None = None
    _first_rows: FirstRows = None  # while the completions at hand are scored

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.args.forks:
            return
        if self.tools or self.rollout_func is not None:
            raise InputError(
                "branch_depths: tools, several turns and rollout_func cannot fork: leave branch_depths away"
            )
        check_model(self)
        self._chooser = self.args.fork_chooser()
        self.reward_funcs = [
            function if isinstance(function, nn.Module) else scored_once(function, lambda: self._first_rows)
            for function in self.reward_funcs
        ]

    @property
    def _plan(self) -> BranchPlan | None:
        """Where completions fork now: validation never does."""
        if not self.model.training:
            return None
        plan: BranchPlan | None = self._chooser.plan if self._chooser else self.args.branch_plan
        return plan

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        """A completion that ended before its fork is scored once for all rows that it fills."""
        if plan := self._plan:
            self._first_rows = plan.first_rows(
                self.num_generations, [len(ids) for ids in completion_ids_list]
            )
        try:
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        finally:
            self._first_rows = None

    def kept_state(self) -> dict[str, Any]:
        chosen = {"fork_chooser": self._chooser.state()} if self._chooser else {}
        return super().kept_state() | chosen

    def load_kept_state(self, kept: Mapping[str, Any]) -> None:
        super().load_kept_state(kept)
        if self._chooser and "fork_chooser" in kept:
            self._chooser.load_state(kept["fork_chooser"])

    def _branch_fractions(self, rewards: np.ndarray) -> Fractions:
        """What is logged of this rank's groups, whose rewards are (R,), NaN where none could be given."""
        plan, found = self._plan, Fractions()
        if self._chooser:
            depth, factor = (plan.depths[0], plan.factors[0]) if plan else (0, 1)
            found |= {"branch/depth": (depth, 1), "branch/factor": (factor, 1)}
        if plan:
            groups = rewards.reshape(-1, self.num_generations)
            scored = groups[~np.isnan(groups).any(axis=1)]
            between, *within = variance_components(scored, plan).sum(axis=0).tolist()
            found |= {
                "branch/variance_between": (between, len(scored)),
                "branch/variance_within": (sum(within), len(scored)),
            }
        return found

    def _choose_next_forks(self, rewards: np.ndarray, own_ids: Sequence[Sequence[int]]) -> None:
        """With `auto`: learn from the batch at hand, for those to come.

        Args:
            rewards: of the rows of all ranks, in their order.
            own_ids: token ids of this rank's completions.
        """
        chooser = self._chooser
        if chooser is None or chooser.is_off:
            return
        lengths = gather_object([len(ids) for ids in own_ids])
        chooser.learn(chooser.plan, rewards.reshape(-1, self.num_generations), lengths)
        if chooser.is_off and self.accelerator.is_main_process:
            _logger.warning("branch_depths 'auto' is off from here on: %s", chooser.described())


def check_model(trainer: Any) -> None:
    """Raise InputError if the trainer's model cannot fork; with vLLM any model can."""
    if trainer.use_vllm:
        return
    try:
        check_can_fork(trainer.model)
    except InputError as reason:
        raise cannot_fork(str(reason)) from reason


def cannot_fork(reason: str) -> InputError:
    """The error where completions are to fork and cannot."""
    return InputError(f"branch_depths: completions cannot fork here: {reason}. Leave branch_depths away")
