"""Whether a model can run over a packed tree: whether its tokens meet in attention only.

A layer that carries a state from each token to the next (state-space models, linear attention, RWKV,
convolutions over tokens) has no place to fork. Such a layer is refused by name.
"""

import re
from inspect import signature
from typing import Any

import torch

from lambda_grpo.errors import InputError
from lambda_grpo.packing.positions import check_positions

_STATEFUL = re.compile(
    r"Mamba|SSM|RWKV|Rwkv|DeltaNet|DeltaAttention|LinearAttention|LightningAttention|Recurrent|ShortConv|xLSTM|LSTM"
)
_LAYER_TYPES = {"full_attention", "sliding_attention", "attention", "dense", "sparse"}
_RANDOM = re.compile(r"drop|jitter|noise")  # in the names of numbers that layers pass to functions
_SELECTS_KEYS = re.compile(r"Indexer")  # a token sees the keys that score best, of the whole row
_OWN_MASKS = {"chameleon": "it masks the logits of image tokens"}  # by model_type
_INSTEAD = "train it without tree packing"


def uncompiled(model: Any) -> Any:
    """What `torch.compile` was called with, because a compiled graph has the model's own attention in it."""
    return getattr(model, "_orig_mod", model)


def inner_model(model: Any) -> Any:
    """The transformers model inside wrappers for several processes, LoRA or `torch.compile`."""
    model = uncompiled(model)
    while isinstance(getattr(model, "module", None), torch.nn.Module) and not hasattr(model, "config"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def check_supported(model: Any, ids: torch.Tensor, position: torch.Tensor) -> None:
    """Refuse what would be wrong on a packed tree.

    Args:
        model: a transformers model, unwrapped.
        ids: integers, every token id that is run or predicted.
        position: (N,) of the packed tree.

    Raises:
        InputError: naming the layer, configuration or token at fault, and what to do.
    """
    check_layers(model)
    check_tokens(model, ids, position)
    check_dropout(model)


def check_dropout(model: Any) -> None:
    """Refuse dropout and noise that are active: a shared token would get the same for all its completions.

    What layers draw is told by the names of their numbers (`attention_dropout`, `jitter_noise`); so numbers
    that a layer reads from its configuration during the pass are not seen.

    Raises:
        InputError: naming the module and its dropout or noise.
    """
    for name, module in model.named_modules():
        if not module.training:
            continue
        if isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0:
            raise _active(name, "dropout", module.p)
        for attribute, value in vars(module).items():
            number = isinstance(value, float | int) and not isinstance(value, bool)
            if number and value > 0 and _RANDOM.search(attribute):
                kind = "dropout" if "drop" in attribute else "noise"
                raise _active(f"{name}.{attribute}", kind, value)


def _active(name: str, kind: str, value: float) -> InputError:
    return InputError(
        f"{name}: {kind} {value} is active, and a shared token would get the same for all its completions; "
        "call model.eval() or set it to 0"
    )


def check_layers(model: Any, instead: str = _INSTEAD) -> None:
    """Refuse a model, whatever it is to run over.

    Args:
        model: a transformers model, unwrapped.
        instead: what the message says to do.

    Raises:
        InputError: it is an encoder, or has layers that cannot fork, or masks that cannot be reproduced.
    """
    config = model.config.get_text_config()
    kind = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError(f"{kind} is an encoder-decoder; prefixes are shared in decoders. {instead}")
    for name, module in model.named_modules():
        if _STATEFUL.search(type(module).__name__) or isinstance(module, torch.nn.Conv1d | torch.nn.RNNBase):
            raise InputError(
                f"{kind}: {name} ({type(module).__name__}) carries a state from token to token, which cannot "
                f"fork; {instead}"
            )
        if _SELECTS_KEYS.search(type(module).__name__):
            raise InputError(
                f"{kind}: {name} ({type(module).__name__}) chooses the keys that a token sees from the whole "
                f"row, other completions included; {instead}"
            )
    other = sorted(set(getattr(config, "layer_types", None) or []) - _LAYER_TYPES)
    if other:
        raise InputError(f"{kind}: layers of type {', '.join(other)} cannot fork; {instead}")
    encoder = getattr(config, "is_decoder", True) is False and any(
        getattr(module, "is_causal", True) is False for module in model.modules()
    )
    if encoder:
        raise InputError(f"{kind} is an encoder: its tokens see those after them; {instead}")
    if config.model_type in _OWN_MASKS:
        raise InputError(f"{kind}: {_OWN_MASKS[config.model_type]}; {instead}")
    if getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True):
        raise InputError(f"{kind}: its attention is not causal; {instead}")
    if "position_ids" not in signature(type(model).forward).parameters:
        raise InputError(
            f"{kind} takes no position_ids, and positions in a tree are not 0, 1, 2, …; {instead}"
        )
    if model.get_output_embeddings() is None:
        raise InputError(f"{kind} has no language-model head")


def check_tokens(model: Any, ids: torch.Tensor, position: torch.Tensor) -> None:
    """Refuse ids beyond the vocabulary and positions beyond a learned table; for arguments `check_supported`.

    Raises:
        InputError: naming the id or the table.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    if int(ids.max()) >= vocabulary:
        raise InputError(f"token id {int(ids.max())} is beyond the model's vocabulary of {vocabulary}")
    check_positions(model, int(position.max()) + 1, "prompt and completion")
