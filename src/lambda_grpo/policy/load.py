"""Load a causal language model and its tokenizer: from a folder, a GGUF file, the Hub, or `smollm2-135m`."""

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
from lambda_grpo.policy import gguf_files
from lambda_grpo.policy.smollm2 import SMOLLM2, smollm2_policy

_CONFIGS = ("config.json", "adapter_config.json")  # of a model; of adapters, which name their model


def load_policy(
    model: str, *, trust_remote_code: bool = False, **kwargs: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer.

    Args:
        model: a folder written by `save_pretrained`, a GGUF file or a folder that holds one, `smollm2-135m`,
            or the id of a model on the Hugging Face Hub.
        trust_remote_code: run the Python code that lies beside the weights, if there is any.
        kwargs: `from_pretrained`'s. Weights are read from safetensors only, unless `use_safetensors=False`.

    Raises:
        InputError: nothing that transformers can load is there, or nothing without running its code.
        LambdaGRPOError: the cache, where a GGUF file is rewritten once, cannot be written to.
    """
    model = model_folder(model)
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    # Other weights than safetensors are pickles; without a word on code, transformers asks on the terminal.
    kwargs = {"use_safetensors": True, "trust_remote_code": trust_remote_code} | kwargs
    with _loading(model):
        return AutoModelForCausalLM.from_pretrained(model, **kwargs), tokenizer


def model_folder(model: str) -> str:
    """What transformers loads: for `smollm2-135m` and GGUF files a folder of the cache, else `model` itself.

    Raises:
        InputError, LambdaGRPOError: as `load_policy`.
    """
    if model == SMOLLM2:
        return str(smollm2_policy())
    file = gguf_files.file_at(Path(model))
    return str(gguf_files.converted(file)) if file else model


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, named as for `load_policy`.

    Raises:
        InputError: as `load_policy`.
    """
    model = model_folder(model)
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
        raise not_loaded(f"cannot load a model and tokenizer from {model!r}", model, error) from error


def not_loaded(what: str, model: str, error: Exception, also: str = "") -> InputError:
    """The error for a `model` that transformers cannot load.

    Of a folder without config.json it tells what the folder is, because transformers says only that it finds
    no tokenizer there.

    Args:
        what: what cannot be done.
        also: what else could be named, such as ", or one of gpt2, qwen2".
    """
    folder = Path(model)
    if folder.is_dir() and not any((folder / name).exists() for name in _CONFIGS):
        if (folder / "model" / "config.json").exists():
            return InputError(f"{what}: {folder} is a run folder: its model is {folder / 'model'}")
        return InputError(
            f"{what}: the folder holds no config.json: expected a folder written by save_pretrained, or one "
            "with a GGUF file"
        )
    absent = "" if folder.exists() else f"there is no folder {model!r} here; "
    return InputError(
        f"{what}: {absent}expected a folder written by save_pretrained, or a Hub id that can be reached"
        f"{also}. transformers says: {error}"
    )
