"""Supervised training of a small policy on demonstrations: how the embedded policy learns its tasks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Pretraining:
    """How a policy imitates demonstrations; part of the cache's key.

    Attributes:
        warmup: share of the steps in which the learning rate rises.
        max_grad_norm: gradients are cut to it; None: they are not.
    """

    steps: int = 800
    batch_size: int = 128
    learning_rate: float = 3e-3
    seed: int = 0
    warmup: float = 0.05
    max_grad_norm: float | None = None


def imitate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[tuple[str, str]],
    recipe: Pretraining,
    progress: Progress | None,
) -> None:
    """Train a model on demonstrations, a batch a step.

    Args:
        demonstrations: steps × batch prompts and completions, in the order in which they are seen.
        progress: called as (step, steps, text with the loss) after each step.
    """
    ids, labels = _examples(tokenizer, demonstrations)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=recipe.warmup
    )
    model.train()
    batches = zip(ids.chunk(recipe.steps), labels.chunk(recipe.steps), strict=True)
    for step, (batch, targets) in enumerate(batches, 1):
        width = int((targets != -100).nonzero()[:, 1].max()) + 1  # right padding needs no mask
        loss = model(input_ids=batch[:, :width], labels=targets[:, :width]).loss
        optimizer.zero_grad()
        loss.backward()
        if recipe.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        if progress:
            progress(step, recipe.steps, f"loss {loss.item():.3f}")
    model.eval()


def _examples(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and labels, (demonstrations, T) each; prompts and padding are unlabelled.

    Each character of a prompt is a token.
    """
    rows = tokenizer([prompt + completion for prompt, completion in pairs])["input_ids"]
    width = max(map(len, rows)) + 1
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for i, (row, (prompt, _)) in enumerate(zip(rows, pairs, strict=True)):
        ids[i, : len(row) + 1] = torch.tensor([*row, tokenizer.eos_token_id])
        labels[i, len(prompt) : len(row) + 1] = ids[i, len(prompt) : len(row) + 1]
    return ids, labels
