"""What the processes of a TRL run must agree on, checked where a disagreement would hang or mix up rows."""

from collections.abc import Callable
from typing import Any

import torch

from lambda_grpo.engines.trl.guards import check_answered
from lambda_grpo.errors import InputError


def checked_rollouts(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """A TRL `rollout_func` that raises if it does not return one completion per prompt.

    With several processes TRL would wait for ever, or end with a message about tensor sizes.

    Raises:
        InputError: the number of completions, prompts or log-probs is not that of the prompts given.
    """

    def checked(prompts: Any, trainer: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        output = function(prompts, trainer, *args, **kwargs)
        for name in ("completion_ids", "prompt_ids", "logprobs"):
            rows = output.get(name)
            if rows is not None and len(rows) != len(prompts):
                rank = trainer.accelerator.process_index
                raise InputError(
                    f"rollout_func, on process {rank}: got {len(rows)} {name} for {len(prompts)} prompts, "
                    "expected one for each, in the same order"
                )
        check_answered(output.get("completion_ids", ()))
        return output

    return checked


def check_agreement(accelerator: Any, rows: int, masked: bool) -> None:
    """Raise, on every process, unless all have equally many rows, and all or none of them a tool mask.

    Raises:
        InputError: they do not; names each process's numbers.
    """
    if accelerator.num_processes == 1:
        return
    mine = torch.tensor([[rows, masked]], device=accelerator.device)
    counts, masks = accelerator.gather(mine).T.tolist()
    if len(set(counts)) > 1:
        raise InputError(
            f"the processes hold different numbers of completions: {_listed(counts)}, expected equally many. "
            "Groups that straddle processes cannot be put together; let every process sample as many"
        )
    if len(set(masks)) > 1:
        having = [bool(mask) for mask in masks]
        raise InputError(
            f"some processes have a tool mask and others have none: {_listed(having)}, expected all or none. "
            "Let rollout_func return env_mask on each of them"
        )


def _listed(values: list[Any]) -> str:
    return ", ".join(f"process {rank}: {value}" for rank, value in enumerate(values))
