"""One forward pass over a packed row, and the log-probs of its tokens back in (R, T).

Invariant: `tree_logps` equals the log-probs of each completion in a row of its own, in value and gradient.

R is the number of completions (of all groups), T the longest, M the number of predicted tokens.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lambda_grpo.errors import InputError
from lambda_grpo.packing.attention import TreeMask, bound
from lambda_grpo.packing.attention.switching import switched
from lambda_grpo.packing.head import Logits, chunk_rows, token_scores
from lambda_grpo.packing.layout import PackedTree
from lambda_grpo.packing.supported import check_supported, inner_model, uncompiled


def tree_logps(
    model: Any, packed: PackedTree, *, temperature: float = 1.0, rows: int | None = None
) -> Tensor:
    """log π(y_it | prompt, y_i,<t) of each completion token, in one forward pass over the unique tokens.

    Args:
        model: a causal language model of transformers, as it is or wrapped for LoRA or several ranks. It
            attends to trees in this pass only.
        packed: on any device; it is brought to the model's.
        temperature: the one of sampling; logits are divided by it.
        rows: positions that the LM head projects at a time; kernels of an engine ignore it. None: as fits its
            vocabulary.

    Returns:
        (R, T), float32 at least; 0 where `packed.index` is -1.

    Raises:
        InputError: a model that cannot fork, active dropout, ids beyond the vocabulary or positions beyond a
            learned table, a temperature that is not positive.
    """
    return tree_logps_and_entropies(model, packed, temperature=temperature, rows=rows)[0]


def tree_logps_and_entropies(
    model: Any, packed: PackedTree, *, temperature: float = 1.0, rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """As `tree_logps`, and the entropy of the distribution each token was drawn from, (R, T) as well."""
    if not temperature > 0:
        raise InputError(f"temperature: expected a positive number, got {temperature}")
    if rows is not None and rows < 1:
        raise InputError(f"rows: expected at least 1 position, got {rows}")
    model, inner = uncompiled(model), inner_model(model)
    adapter = getattr(model, "active_peft_config", None)
    if adapter is not None and adapter.is_prompt_learning:
        raise InputError(
            f"{adapter.peft_type.value} puts virtual tokens before the row; train it without tree packing"
        )
    packed = packed.to(inner.device)
    check_supported(inner, torch.cat([packed.ids, packed.target]), packed.position)
    config = inner.config.get_text_config()
    logits = Logits.of_model(config, temperature)
    chunk = rows or chunk_rows(config.vocab_size)
    scores: list[tuple[Tensor, Tensor]] = []
    made: list[Tensor] = []

    def score_instead(head: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Runs before the head, within the model's forward, as wrappers that gather parameters need it."""
        hooks.pop().remove()
        predicting = args[0][0].index_select(0, packed.predictor)
        scores.append(token_scores(head, predicting, packed.target, logits, chunk))
        hooks.append(head.register_forward_hook(lambda _head, _args, output: made.append(output.detach())))
        return (args[0][:, -1:],)

    hooks = [inner.get_output_embeddings().register_forward_pre_hook(score_instead)]
    try:
        with switched(inner) as own, bound(packed.layout, own) as binding:
            output = _run(model, packed)
    finally:
        for hook in hooks:
            hook.remove()
    if binding.layers != config.num_hidden_layers:
        raise InputError(
            f"{type(model).__name__}: {binding.layers} of its {config.num_hidden_layers} layers attended to "
            "the tree; the others mix tokens by means that cannot fork. Train it without tree packing"
        )
    _check_logits(model, output.detach(), replace(logits, temperature=1.0)(made[0]))
    return _spread(scores[0][0], packed.index), _spread(scores[0][1], packed.index)


def _run(model: Any, packed: PackedTree) -> Tensor:
    """The logits that the model gives for the last token of the row."""
    try:
        logits: Tensor = model(
            input_ids=packed.ids[None],
            attention_mask=torch.ones_like(packed.ids)[None],
            position_ids=packed.position[None],
            use_cache=False,
            return_dict=True,
        ).logits
    except (AttributeError, TypeError) as error:
        if TreeMask.__name__ not in str(error):
            raise
        raise InputError(
            f"{type(model).__name__} computes with its attention mask, of which a tree has none ({error}); "
            "train it without tree packing"
        ) from error
    return logits


def _check_logits(model: Any, theirs: Tensor, ours: Tensor) -> None:
    """Refuse a model that makes something else of its head's output than `Logits` does."""
    off = float((theirs - ours).abs().max())
    if not off <= 0.02 * float(ours.abs().max()):
        raise InputError(
            f"{type(model).__name__} makes logits of its head's output in a way that is not known (off by "
            f"{off:.2g} at the last token); train it without tree packing"
        )


def _spread(values: Tensor, index: Tensor) -> Tensor:
    """(M,) → (R, T); autograd sums what flows back to a shared token."""
    padded = torch.nn.functional.pad(values, (0, 1))
    return padded.index_select(0, index.flatten() % len(padded)).view(index.shape)
