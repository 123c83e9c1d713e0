"""λ-GRPO on Tinker: the cookbook's `assemble_training_data`, with a credit in the datums' advantages.

This is client code only. The server, Thinking Machines' own or any that speaks its API (SkyRL has one), gets
ordinary datums with token advantages. Tinker's losses are sums over tokens, so weighting a token's advantage
weights its term:

- **exact** for `importance_sampling`, `ppo` and `cispo`: their terms are positively homogeneous in the
  token's own advantage, and there is no denominator to keep;
- **not λ-GRPO** for `gspo` (one ratio per sequence) and for losses with a term without advantage (`dro`).

The cookbook's KL penalty (`kl_penalty_coef`) is added to the advantages afterwards, so it stays unweighted,
unlike the paper's. A trajectory may be several datums, and an observation may repeat earlier actions: see
`multi_row` for what |λ| counts. Tested with tinker 0.38.0 and tinker-cookbook 0.5.8; how to use it:
docs/tinker.md.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import tinker
from tinker_cookbook.rl import data_processing
from tinker_cookbook.rl.types import TrajectoryGroup

from lambda_grpo.credit import get_credit, refuse_plan
from lambda_grpo.engines.multi_row import Row, credit_rows
from lambda_grpo.errors import InputError

Metadata = dict[str, int]


def assemble_training_data(
    trajectory_groups_P: list[TrajectoryGroup],
    advantages_P: list[Any],
    credit: str = "lambda_grpo",
    credit_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[list[tinker.Datum], list[Metadata]]:
    """The cookbook's function of this name, then `credit_data`: what it takes and what it returns.

    Args:
        trajectory_groups_P: the groups.
        advantages_P: per group (G,), as `compute_advantages` of the cookbook returns them, or your own.
        credit, credit_kwargs: a key of `lambda_grpo.credit.CREDITS`, and its own parameters.
        kwargs: further arguments of the cookbook's function.

    Raises:
        InputError: as `credit_data`.
    """
    data, metadata = data_processing.assemble_training_data(trajectory_groups_P, advantages_P, **kwargs)
    rewards = [group.get_total_rewards() for group in trajectory_groups_P]
    credited, _ = credit_data(data, metadata, rewards, advantages_P, credit, credit_kwargs)
    return credited, metadata


def credit_data(
    data: Sequence[tinker.Datum],
    metadata: Sequence[Metadata],
    rewards_P: Sequence[Sequence[float]],
    advantages_P: Sequence[Any],
    credit: str = "lambda_grpo",
    credit_kwargs: Mapping[str, Any] | None = None,
) -> tuple[list[tinker.Datum], dict[str, float]]:
    """Replace the advantages of assembled datums by credit.weight × credit.advantage.

    Args:
        data: datums of whole groups with `target_tokens`, `advantages` and `mask`, not yet stripped of it.
        metadata: the `group_idx` and `traj_idx` of each.
        rewards_P, advantages_P: per group, one number per trajectory, those without a datum included.
        credit, credit_kwargs: as `assemble_training_data`.

    Returns:
        New datums, equal but for their advantages (float32, zero where masked); and the means that the TRL
        engine logs, by the same names.

    Raises:
        InputError: an unknown credit; a datum that holds an image or lacks a field; numbers that are not
            finite.
    """
    refuse_plan(credit, "Tinker")
    bound = partial(get_credit(credit, credit_kwargs), **(credit_kwargs or {}))
    own = [_row(i, *pair, rewards_P, advantages_P) for i, pair in enumerate(zip(data, metadata, strict=True))]
    seen = {(row.group, row.rollout) for row in own}
    nothing = (np.zeros(0, np.int64), np.zeros(0, bool))  # a trajectory that ended before its first token
    empty = [
        Row(g, i, *nothing, float(reward), float(advantages_P[g][i]))
        for g, rewards in enumerate(rewards_P)
        for i, reward in enumerate(rewards)
        if (g, i) not in seen
    ]
    found, means = credit_rows([*own, *empty], bound)
    return (
        [
            _with_advantages(datum, result.weighted[1:])  # the first token has no target
            for datum, result in zip(data, found[: len(own)], strict=True)
        ],
        means,
    )


def _row(
    number: int,
    datum: tinker.Datum,
    metadata: Metadata,
    rewards_P: Sequence[Sequence[float]],
    advantages_P: Sequence[Any],
) -> Row:
    """All tokens of a datum, the prompt's too; its mask begins at the second, the first that has a target."""
    inputs = datum.loss_fn_inputs
    missing = {"target_tokens", "advantages", "mask"} - inputs.keys()
    if missing:
        raise InputError(
            f"datum #{number}: loss_fn_inputs lack {sorted(missing)}, got {sorted(inputs)}; hand in "
            "the datums as assemble_training_data returns them"
        )
    for chunk in datum.model_input.chunks:
        if not isinstance(chunk, tinker.EncodedTextChunk):
            raise InputError(
                f"datum #{number}: expected text only, got a {type(chunk).__name__}; images have no token "
                "ids to compare, so leave such groups to the cookbook's own assemble_training_data"
            )
    tokens = np.array([*datum.model_input.to_ints()[:1], *inputs["target_tokens"].to_numpy()], np.int64)
    mask = np.concatenate([[False], inputs["mask"].to_numpy() > 0])
    g, i = metadata["group_idx"], metadata["traj_idx"]
    return Row(g, i, tokens, mask, float(rewards_P[g][i]), float(advantages_P[g][i]))


def _with_advantages(datum: tinker.Datum, advantages: np.ndarray) -> tinker.Datum:
    data = tinker.TensorData.from_numpy(advantages.astype(np.float32))
    return dataclasses.replace(datum, loss_fn_inputs={**datum.loss_fn_inputs, "advantages": data})
