"""Load a causal language model and its tokenizer from a local folder or the Hugging Face Hub."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from lambda_grpo.errors import InputError


def load_policy(
    model: str, *, trust_remote_code: bool = False, **kwargs: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer from a local folder or the Hugging Face Hub.

    Args:
        trust_remote_code: run the Python code that lies beside the weights, if there is any.
        kwargs: `from_pretrained`'s. Weights are read from safetensors only, unless `use_safetensors=False`.

    Raises:
        InputError: nothing that transformers can load is there, or nothing without running its code.
    """
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    # Other weights than safetensors are pickles; without a word on code, transformers asks on the terminal.
    kwargs = {"use_safetensors": True, "trust_remote_code": trust_remote_code} | kwargs
    with _loading(model):
        return AutoModelForCausalLM.from_pretrained(model, **kwargs), tokenizer


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder or a Hub id.

    Raises:
        InputError: as `load_policy`.
    """
    kind = PreTrainedTokenizerFast if _is_generic(Path(model)) else AutoTokenizer
    with _loading(model):
        return kind.from_pretrained(model, padding_side="left", trust_remote_code=trust_remote_code)


def _is_generic(folder: Path) -> bool:
    """Whether a folder holds a tokenizer that is all in its tokenizer.json, with no class of its own.

    AutoTokenizer takes it for the one that models of this type usually have. With Qwen2's, characters that
    the vocabulary lacks vanish, where tokenizer.json makes them `<unk>`.
    """
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return (folder / "tokenizer.json").is_file() and settings.get("tokenizer_class") == "TokenizersBackend"


@contextmanager
def _loading(model: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(
            f"cannot load a model and tokenizer from {model!r}: expected a folder written by "
            f"save_pretrained, or a Hub id that can be reached. transformers says: {error}"
        ) from error
