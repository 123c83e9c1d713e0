"""TRL's own `_compute_loss` as the oracle of λ-GRPO: its source with one line spliced in.

There are two places where a token's weight can enter, and for token-level ratios they agree in gradient:

    "gradient"  per_token_logps = w * per_token_logps + (1 - w) * per_token_logps.detach()
                right after the log-probs. The loss keeps its value, a log-prob gets w times its gradient.
                For every loss type and for sequence-level ratios.
    "term"      per_token_loss = w * per_token_loss
                right before the normalisation: the definition, in value too. For token-level ratios.

w is `inputs["credit_weights"]`, (B, T). Where TRL's source no longer has the anchor line exactly once,
`spliced_compute_loss` raises.
"""

import inspect
import textwrap
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal

import torch
import trl
from trl import GRPOTrainer
from trl.trainer import grpo_trainer

Splice = Literal["gradient", "term"]
ComputeLoss = Callable[[Any, Any, dict[str, Any]], torch.Tensor]

# Place: the line of TRL's after which to splice, and what.
_SPLICES: dict[Splice, tuple[str, str]] = {
    "gradient": (
        'advantages = inputs["advantages"]',
        'per_token_logps = inputs["credit_weights"] * per_token_logps'
        ' + (1 - inputs["credit_weights"]) * per_token_logps.detach()',
    ),
    "term": (
        'mode = "train" if self.model.training else "eval"',
        'per_token_loss = inputs["credit_weights"] * per_token_loss',
    ),
}


def spliced_compute_loss(splice: Splice) -> ComputeLoss:
    """`GRPOTrainer._compute_loss` with the weights `inputs["credit_weights"]`, a function of (trainer, model,
    inputs). Assigned to a trainer's class as `_compute_loss` it replaces what stood there, hooks included.

    Raises:
        AssertionError: TRL's source does not have the anchor line exactly once.
    """
    source = textwrap.dedent(inspect.getsource(GRPOTrainer._compute_loss))
    namespace = dict(vars(grpo_trainer))
    code = compile(
        splice_after(source, *_SPLICES[splice]), f"<TRL's _compute_loss, {splice} spliced>", "exec"
    )
    exec(code, namespace)
    return namespace["_compute_loss"]


def splice_after(source: str, anchor: str, line: str) -> str:
    """`source` with `line` below its only line `anchor`, indented alike."""
    lines = source.splitlines()
    found = [i for i, text in enumerate(lines) if text.strip() == anchor]
    if len(found) != 1:
        raise AssertionError(
            f"TRL {trl.__version__}: expected the line {anchor!r} exactly once in _compute_loss, found it "
            f"{len(found)} times. Read the new source and move the anchor."
        )
    indent = lines[found[0]][: -len(lines[found[0]].lstrip())]
    return "\n".join([*lines[: found[0] + 1], indent + line, *lines[found[0] + 1 :]])


def stand_in_trainer(logps: torch.Tensor, **settings: Any) -> SimpleNamespace:
    """What `_compute_loss` reads of a trainer, without model or data: one process, training, `logps` (B, T)
    as the policy's log-probs. `settings` replace the defaults below; `args_` ones go to `args`."""
    args = {name[5:]: value for name, value in settings.items() if name.startswith("args_")}
    own = {name: value for name, value in settings.items() if not name.startswith("args_")}
    accelerator = SimpleNamespace(
        num_processes=1, gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x
    )
    defaults = {
        "loss_type": "dapo",
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "importance_sampling_level": "token",
        "max_completion_length": 256,
        "current_gradient_accumulation_steps": 1,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False,
    }
    return SimpleNamespace(
        **{**defaults, **own},
        args=SimpleNamespace(
            **{"use_bias_correction_kl": False, "delta": None, "steps_per_generation": 1, **args}
        ),
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros_like(logps), None),
    )
