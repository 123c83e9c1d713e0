"""A transformers model switched to tree attention for one packed pass, and back to its own.

Only the part that runs over tokens is switched: towers for images and sounds are not touched.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from transformers import PreTrainedConfig

from lambda_grpo.errors import InputError
from lambda_grpo.packing.attention import IMPLEMENTATION, TreeMask


def use_tree_attention(model: Any, implementation: str = IMPLEMENTATION) -> None:
    """Switch the text part of a transformers model to tree attention; outside `bound` it stays plain SDPA.

    Args:
        implementation: the registered name of another attention that knows of trees.

    Raises:
        InputError: transformers cannot switch this model's attention.
    """
    text = text_part(model)
    if text.config._attn_implementation != implementation:
        text.set_attn_implementation(implementation)
    if text.config._attn_implementation != implementation:
        raise InputError(
            f"{type(model).__name__}: its attention does not go through transformers' attention interface, "
            "so it cannot be told about trees; train it without tree packing"
        )


def text_part(model: Any) -> Any:
    """The part of a transformers model that runs over tokens, without its towers for images or sounds."""
    decoder = model.get_decoder()
    return decoder if hasattr(decoder, "config") else model  # some call their head "decoder"


# Of a model that is switched at the moment: the name of its own attention.
_plain: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()


@contextmanager
def switched(model: Any, implementation: str = IMPLEMENTATION) -> Iterator[str]:
    """Inside, the layers of a transformers model take trees; afterwards its attention is what it was.

    Gives the name of the attention that the model uses for plain rows, also where it is switched already.

    Gradient checkpointing runs layers again in the backward, when the model is back on its own attention: a
    layer that gets a `TreeMask` then switches for that call.

    Raises:
        InputError: transformers cannot switch this model's attention.
    """
    before = [(config, config._attn_implementation) for config in _configs(model)]
    text = text_part(model)
    outermost = text not in _plain
    own = _plain.setdefault(text, text.config._attn_implementation)
    try:
        use_tree_attention(model, implementation)
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            _switch_when_recomputed(model)
        yield own
    finally:
        if outermost:
            del _plain[text]
        for config, implementation in before:
            config._attn_implementation_internal = implementation  # without it transformers sets parts too


def _configs(model: Any) -> list[PreTrainedConfig]:
    """The configurations of a model and of its parts, each once, also those that no module holds."""
    found: dict[int, PreTrainedConfig] = {}
    held: list[Any] = [value for module in model.modules() for value in vars(module).values()]
    while held:
        value = held.pop()
        if isinstance(value, PreTrainedConfig) and id(value) not in found:
            found[id(value)] = value
            held += vars(value).values()
    return list(found.values())


_recomputable: WeakSet[torch.nn.Module] = WeakSet()
_own: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()  # of a layer that is being recomputed


def _switch_when_recomputed(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "config") and module not in _recomputable:
            _recomputable.add(module)
            module.register_forward_pre_hook(_begin_recomputing, with_kwargs=True)
            module.register_forward_hook(_end_recomputing, always_call=True)


def _begin_recomputing(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    masks = (value for value in (*args, *kwargs.values()) if isinstance(value, TreeMask))
    if next(masks, None) is not None and module.config._attn_implementation != IMPLEMENTATION:
        _own[module] = module.config._attn_implementation
        module.config._attn_implementation = IMPLEMENTATION


def _end_recomputing(module: Any, *_: Any) -> None:
    if module in _own:
        module.config._attn_implementation = _own.pop(module)
