"""A GGUF file is a model like any other: rewritten once, whole or not at all."""

import errno
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("gguf")
import tiny_gguf

from lambda_grpo import InputError, LambdaGRPOError, cli, policy
from lambda_grpo.policy import cache, gguf_files

TASK = Path(__file__).parents[1] / "support" / "varied_task.py"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("LAMBDA_GRPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    return tiny_gguf.write(tmp_path / "there" / "tiny.gguf")


def visible(folder: Path) -> list[str]:
    """What is in a cache, but for locks."""
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return [name for name in names if not name.endswith(".lock")]


def test_a_file_is_the_model_that_it_says(file: Path, own_cache: Path) -> None:
    model, tokenizer = policy.load_policy(str(file.parent))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    written = tiny_gguf.tensors()
    for name, there in (
        ("embed_tokens.weight", "token_embd.weight"),
        ("layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
    ):
        assert (model.get_parameter(f"model.{name}").detach().numpy() == written[there]).all()
    assert tokenizer("he1\n<|im_end|>")["input_ids"] == [
        tiny_gguf.TOKENS.index(t) for t in ("he", "1", "Ċ", "<|im_end|>")
    ]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.chat_template == tiny_gguf.TEMPLATE
    assert len(visible(own_cache)) == 1
    again, _ = policy.load_policy(str(file))  # the file itself is as good as its folder
    assert len(visible(own_cache)) == 1
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    tiny_gguf.write(file)  # another file of that name
    policy.load_policy(str(file))
    assert len(visible(own_cache)) == 2


def test_it_can_be_trained(file: Path, tmp_path: Path) -> None:
    """β > 0 needs the reference, which TRL loads by the model's folder; the trained policy is saved like any other."""
    flags = [
        "--max_steps=1",
        "--per_device_train_batch_size=4",
        "--num_generations=4",
        "--eval_problems=2",
        "--beta=0.1",
    ]
    flags += ["--max_completion_length=4", f"--task={TASK}:Varied", f"--output_dir={tmp_path / 'run'}"]
    assert cli.main(["train", f"--model={file.parent}", *flags]) == 0
    trained, _ = policy.load_policy(str(tmp_path / "run" / "model"))
    assert not hasattr(trained.config, "quantization_config")


@pytest.mark.parametrize("kept", [0, 3, 1_000, 5_000, -20_000, -1])
def test_a_file_that_is_cut_short(file: Path, own_cache: Path, kept: int) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:kept])
    with pytest.raises(
        InputError, match=r"GGUF file '.*tiny.gguf' of [\d,]+ bytes cannot be read: expected a whole file"
    ):
        policy.load_policy(str(file.parent))
    assert visible(own_cache) == []


def test_several_files(file: Path) -> None:
    tiny_gguf.write(file.with_name("other.gguf"))
    with pytest.raises(InputError, match=r"got 2 GGUF files \(other.gguf, tiny.gguf\), expected one"):
        policy.load_policy(str(file.parent))


def test_the_package_is_missing(file: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"needs the package gguf, which is not installed: pip install 'lambda-grpo\[gguf\]'"
    ):
        policy.load_policy(str(file.parent))
    assert visible(own_cache) == []


def test_a_full_disk(own_cache: Path) -> None:
    """Half of the folder is written then: nothing of it stays, and the next attempt is a new one."""

    def half(aside: Path) -> None:
        (aside / "config.json").write_text("{}")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        LambdaGRPOError,
        match="cannot be written to, and model is not in it: .*No space left.*LAMBDA_GRPO_CACHE",
    ):
        cache.made_once("model", half)
    assert visible(own_cache) == []
    assert cache.made_once("model", lambda aside: None) == own_cache / "model"


def test_a_full_disk_while_the_weights_are_written(
    file: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk of 50 kB, by the limit of a file's size: safetensors reports it in an error of its own."""
    import resource
    import signal

    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(LambdaGRPOError, match="cannot be written to"):
            policy.load_policy(str(file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert visible(own_cache) == []


def test_a_killed_process_leaves_nothing_that_is_read(own_cache: Path) -> None:
    """It is killed in the middle of writing; what it left is not taken for the folder, and removed by the next one."""
    import subprocess

    code = (
        "import os, signal\n"
        "from lambda_grpo.policy import cache\n"
        "def make(aside):\n"
        "    (aside / 'config.json').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "cache.made_once('model', make)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert visible(own_cache) == [".model.partial"]
    folder = cache.made_once("model", lambda aside: (aside / "config.json").write_text("whole"))
    assert visible(own_cache) == ["model"]
    assert (folder / "config.json").read_text() == "whole"
    assert cache.made_once("model", lambda aside: pytest.fail("made again")) == folder
