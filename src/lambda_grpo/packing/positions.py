"""Positions of a model that has learned a table of them, as GPT-2 has; rotary ones need nothing here."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from lambda_grpo.errors import InputError
from lambda_grpo.packing.attention.switching import text_part

_TABLES = {"wpe", "embed_positions", "position_embeddings", "position_embedding"}


def learned_tables(model: Any) -> Iterator[tuple[str, torch.nn.Embedding]]:
    """The model's tables of positions with their names."""
    text = set(text_part(model).modules())  # the towers of images and sounds have tables of their own
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in _TABLES and module in text:
            yield name, module


def check_positions(model: Any, count: int, what: str) -> None:
    """Refuse more positions than a model has learned a table of; one that computes them knows any.

    Raises:
        InputError: naming the table.
    """
    for name, table in learned_tables(model):
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", table.num_embeddings)
        if count > limit:
            raise InputError(f"{what} need {count} positions, {name} knows {limit}")


@contextmanager
def padding_not_counted(model: Any) -> Iterator[None]:
    """Inside, a model with a learned table counts its positions from each row's first real token.

    TRL's passes give no positions. Padding on the left then moves a shorter prompt to later positions than
    those at which it was sampled, and at which a packed row has it.

    Args:
        model: a transformers model, unwrapped.
    """

    def count(_: Any, args: Any, inputs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        positions = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        return args, {**inputs, "position_ids": positions}

    if not any(learned_tables(model)):
        yield
        return
    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
