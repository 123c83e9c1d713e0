"""Log-probs of completions under a causal language model of transformers; this module needs torch only.

Invariant: padding changes no result. The model gets the attention mask, and position ids that count real
tokens only; without them, a left-padded prompt is shifted, or attends to its padding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lambda_grpo.errors import InputError


def completion_logps(
    model: Callable[..., Any],
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
) -> torch.Tensor:
    """log π(y_it | prompt, y_i,<t) of each completion token, in one forward pass.

    This function pads prompts on the left and completions on the right; the caller does not.

    Args:
        model: called with input_ids, attention_mask, position_ids, use_cache and logits_to_keep; returns
            `logits`. Switch off dropout (`model.eval()`) for log-probs that repeat.
        prompt_ids: B sequences of token ids, none of them empty.
        completion_ids: B sequences of token ids; they may be empty.
        temperature: the one of sampling; logits are divided by it.

    Returns:
        (B, T) float32 (float64 of a float64 model), 0 past a completion's end.

    Raises:
        InputError: prompts and completions that do not match, none at all, an empty prompt, or a
            temperature that is not positive.

    >>> from types import SimpleNamespace
    >>> def uniform(input_ids, **_):
    ...     return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 4))
    >>> completion_logps(uniform, [[1, 2], [3]], [[0], [1, 2]])  # log 1/4 each
    tensor([[-1.3863,  0.0000],
            [-1.3863, -1.3863]])
    """
    _check(prompt_ids, completion_ids, temperature)
    start = max(map(len, prompt_ids))
    longest = max(map(len, completion_ids))

    ids = torch.zeros((len(prompt_ids), start + longest), dtype=torch.long)  # padding may have any id
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(zip(prompt_ids, completion_ids, strict=True)):
        real = slice(start - len(prompt), start + len(completion))
        ids[row, real] = torch.tensor([*prompt, *completion])
        mask[row, real] = 1
    if isinstance(model, torch.nn.Module):
        device = next(model.parameters()).device
        ids, mask = ids.to(device), mask.to(device)

    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=False,
        logits_to_keep=longest + 1,
    )
    logits = output.logits[:, -(longest + 1) : -1]  # a position predicts the next token
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    chosen = logits.gather(2, ids[:, start:, None]).squeeze(2) - logits.logsumexp(dim=2)
    return torch.where(mask[:, start:].bool(), chosen, 0)


def _check(
    prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], temperature: float
) -> None:
    if len(prompt_ids) != len(completion_ids) or len(prompt_ids) == 0:
        raise InputError(
            f"completion_ids: expected one per prompt and at least one, got {len(completion_ids)} for "
            f"{len(prompt_ids)} prompts"
        )
    for i, prompt in enumerate(prompt_ids):
        if len(prompt) == 0:
            raise InputError(f"prompt_ids: #{i} is empty, so nothing predicts its completion's first token")
    if not temperature > 0:
        raise InputError(f"temperature: expected a positive number, got {temperature}")
