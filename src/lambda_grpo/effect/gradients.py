"""GRPO's gradient and another credit's on the same rollouts, summed over as many groups as there are.

The loss of a first update is -Σ w_it·A_it·log π(y_it), so each credit needs a forward and a backward
pass. Packing computes each shared token once, which changes no gradient (packing/layout.py). What the sum is
divided by is left out: both gradients have the same denominator.

Deviation from a step of training: the ratio to the sampling policy is 1, nothing is clipped, there is no KL
term, and all tokens of a completion count, because rollout files do not mark those of tools.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch

from lambda_grpo.credit import Credit, TokenCredit, credit_group, grpo
from lambda_grpo.errors import InputError
from lambda_grpo.logps import completion_logps
from lambda_grpo.packing import pack_whole, tree_logps
from lambda_grpo.packing.supported import check_layers
from lambda_grpo.rollouts import Group
from lambda_grpo.tree import ProcessTree

Gradient = list[torch.Tensor]
_PIECE = 2**20  # numbers


@dataclass(frozen=True)
class Passes:
    """How gradients are computed.

    Attributes:
        credit: compared with `grpo`, its own parameters bound.
        by_completion: whether each completion's tokens are averaged first (TRL's loss `grpo`).
        temperature: of the sampling.
        tokens: unique ones in a pass, at most; a larger group has a pass of its own.
        packed: whether shared tokens are computed once; False for models that cannot fork.
    """

    credit: Credit
    by_completion: bool = False
    temperature: float = 1.0
    tokens: int = 4096
    packed: bool = True


@dataclass(frozen=True)
class Comparison:
    """A credit's gradient beside GRPO's, on some groups.

    Attributes:
        run, step: which groups; None: all.
        cosine: between the two; NaN if one of them is 0.
        norm_ratio: the credit's norm by GRPO's; NaN if that is 0.
    """

    run: str | None
    step: int | None
    groups: int
    cosine: float
    norm_ratio: float


def compare_gradients(
    model: Any, groups: Sequence[Group], passes: Passes, shown: Callable[[int, int], None] = lambda *_: None
) -> list[Comparison]:
    """Over all groups, and then over those of each step.

    Args:
        model: a causal language model without active dropout.
        groups: those of a step are neighbours; with `prompt_ids`.
        passes: how.
        shown: called with how many groups are done, and of how many.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    credits = grpo, passes.credit
    total = [_zeros(parameters) for _ in credits]
    of_step = [_zeros(parameters) for _ in credits]
    steps = []
    done = 0
    for (run, step), members in groupby(groups, key=lambda group: (group.run, group.step)):
        for part in chain(*of_step):
            part.zero_()
        in_step = list(members)
        for batch in _batches(in_step, passes.tokens):
            forward = _forward(model, batch, passes)
            for sums, credit in zip(of_step, credits, strict=True):
                # a forward for each: compiled kernels, which attention has on CUDA, allow one backward only
                _add(sums, _gradient(parameters, forward(), batch, credit, passes))
            done += len(batch)
            shown(done, len(groups))
        for sums, gradient in zip(total, of_step, strict=True):
            _add(sums, gradient)
        steps.append(_compared(run, step, len(in_step), of_step))
    return [_compared(None, None, len(groups), total), *steps]


def can_pack(model: Any) -> str | None:
    """None if the model can run over trees; otherwise why it cannot."""
    try:
        check_layers(model)
    except InputError as error:
        return str(error)
    return None


def group_tokens(group: Group) -> int:
    """Tokens of a group, prompts included, if each shared one is computed once."""
    return ProcessTree.build(_rows(group)).unique_tokens


def _batches(groups: Sequence[Group], tokens: int) -> Iterator[list[Group]]:
    batch: list[Group] = []
    used = 0
    for group in groups:
        own = group_tokens(group)
        if batch and used + own > tokens:
            yield batch
            batch, used = [], 0
        batch.append(group)
        used += own
    yield batch


def _gradient(
    parameters: Sequence[torch.Tensor],
    logps: torch.Tensor,
    groups: Sequence[Group],
    credit: Credit,
    passes: Passes,
) -> Sequence[torch.Tensor | None]:
    """A credit's gradient on some groups from their (R, T) log-probs; None where a parameter has none."""
    pushes = np.zeros(logps.shape, np.float64)
    row = 0
    for group in groups:
        push = _pushes(group, credit, passes.by_completion)
        pushes[row : row + len(push), : push.shape[1]] = push
        row += len(push)
    given = torch.from_numpy(pushes).to(logps.device, logps.dtype)
    return torch.autograd.grad(logps, parameters, given, allow_unused=True)


def _forward(model: Any, groups: Sequence[Group], passes: Passes) -> Callable[[], torch.Tensor]:
    """Gives (R, T) log-probs of the completions of some groups, each time that it is called."""
    prompts = [ids.tolist() for group in groups for ids in group.prompt_ids]
    if not passes.packed:
        completions = [ids.tolist() for group in groups for ids in group.token_ids]
        return partial(completion_logps, model, prompts, completions, temperature=passes.temperature)
    tree = ProcessTree.build([row for group in groups for row in _rows(group)])
    packed = pack_whole(tree, np.array([len(prompt) for prompt in prompts]))
    return partial(tree_logps, model, packed, temperature=passes.temperature)


def _rows(group: Group) -> list[np.ndarray]:
    return [np.concatenate(pair) for pair in zip(group.prompt_ids, group.token_ids, strict=True)]


def _pushes(group: Group, credit: Callable[..., TokenCredit], by_completion: bool) -> np.ndarray:
    """(G, T) what each token's log-prob is pushed by."""
    tree = ProcessTree.build(group.token_ids, group.contexts.tolist())
    given = credit_group(credit, tree, group.rewards, group.advantages, None)
    return given.weighted.astype(np.float64) / (np.maximum(tree.lengths, 1)[:, None] if by_completion else 1)


def _zeros(parameters: Sequence[torch.Tensor]) -> Gradient:
    return [torch.zeros_like(parameter) for parameter in parameters]


def _add(sums: Gradient, gradient: Sequence[torch.Tensor | None]) -> None:
    for into, part in zip(sums, gradient, strict=True):
        if part is not None:
            into += part


def _dot(a: Gradient, b: Gradient) -> float:
    """In float64, piece by piece: a whole embedding in float64 would need more memory than the passes."""
    total = 0.0
    for x, y in zip(a, b, strict=True):
        for at in range(0, x.numel(), _PIECE):
            of_x, of_y = (part.flatten()[at : at + _PIECE].double() for part in (x, y))
            total += float(of_x @ of_y)
    return total


def _compared(run: str | None, step: int | None, groups: int, gradients: Sequence[Gradient]) -> Comparison:
    base, other = gradients
    norms = math.sqrt(_dot(base, base)), math.sqrt(_dot(other, other))
    cosine = _dot(base, other) / (norms[0] * norms[1]) if norms[0] * norms[1] > 0 else math.nan
    ratio = norms[1] / norms[0] if norms[0] > 0 else math.nan
    return Comparison(run, step, groups, float(np.clip(cosine, -1, 1)), ratio)
