"""A GGUF file, the format of llama.cpp, as an ordinary folder that transformers can train and save.

transformers reads such a file, but refuses to save the model, because it counts as quantised. So its weights,
in float32, move into a model of the same class that was never quantised.
"""

import copy
import hashlib
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lambda_grpo.errors import InputError, missing_extra
from lambda_grpo.policy import cache


def file_at(path: Path) -> Path | None:
    """The GGUF file that a path names, or that lies in a folder without config.json; None if there is none.

    Raises:
        InputError: there are several.
    """
    if path.suffix == ".gguf" and path.is_file():
        return path
    if (path / "config.json").exists():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise InputError(f"folder {str(path)!r}: got {len(found)} GGUF files ({names}), expected one")
    return found[0] if found else None


def converted(file: Path) -> Path:
    """The folder in the cache that holds the model of a GGUF file, written now if it is not there.

    Raises:
        InputError: as `read`.
        LambdaGRPOError: the cache cannot be written to.
    """
    stat = file.stat()
    told_apart = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    key = hashlib.sha256(told_apart.encode()).hexdigest()[:12]

    def make(aside: Path) -> None:
        model, tokenizer = read(file)
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)

    return cache.made_once(f"gguf-{file.stem}-{key}", make)


def read(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, in float32, and the tokenizer of a GGUF file.

    Raises:
        InputError: the package gguf is not installed, the file is cut short or no GGUF file, or transformers
            does not know its kind of model.
    """
    expect_package()
    try:
        with redirect_stderr(StringIO()):  # transformers draws a bar of its own, across ours
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            model = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32
            )
    except Exception as error:  # a broken file can fail anywhere in what parses it
        raise InputError(
            f"GGUF file {str(file)!r} of {file.stat().st_size:,} bytes cannot be read: expected a whole file "
            f"with a model that transformers knows. {type(error).__name__}: {error}"
        ) from error
    return _unquantised(model), tokenizer


def expect_package() -> None:
    """Raise InputError unless the package gguf is installed."""
    if find_spec("gguf") is None:
        raise missing_extra("gguf", "gguf")


def _unquantised(model: PreTrainedModel) -> PreTrainedModel:
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.random.fork_rng(devices=[]):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain.eval()
