import shutil
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config

from lambda_grpo import InputError, policy
from lambda_grpo.policy import embedded
from lambda_grpo.tasks.thinking_sums import CHARACTERS


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The same pre-training, three steps long, with an empty cache."""
    monkeypatch.setattr(embedded, "PRETRAINING", embedded.Pretraining(steps=3, batch_size=8))
    monkeypatch.setenv("LAMBDA_GRPO_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_tokenizer_is_one_token_per_character(tmp_path: Path) -> None:
    tokenizer = policy.character_tokenizer(CHARACTERS)
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    text = "7+2+9+4=?9,18,22"
    for each in (tokenizer, again):
        assert len(each(text)["input_ids"]) == len(text)
        assert each.decode(each(text)["input_ids"]) == text
        assert each.decode([each.eos_token_id, each.pad_token_id], skip_special_tokens=True) == ""


def test_unknown_characters_do_not_vanish(tmp_path: Path) -> None:
    """Beside a Qwen2 transformers loads Qwen2's own class of tokenizer, which leaves them out: a prompt may be empty."""
    policy.character_tokenizer("01").save_pretrained(tmp_path)
    Qwen2Config().save_pretrained(tmp_path)
    tokenizer = policy.load_tokenizer(str(tmp_path))
    assert tokenizer("7+1=")["input_ids"] == [2, 2, 4, 2]  # <pad>, <eos>, <unk>, 0, 1
    assert tokenizer.padding_side == "left"


def test_embedded_policy_is_made_once(quick: Path) -> None:
    steps = []
    folder = policy.embedded_policy(lambda step, total, note: steps.append((step, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert policy.embedded_policy(lambda *_: pytest.fail("pre-trained again")) == folder
    left = {path.name for path in folder.parent.iterdir()}
    assert left == {folder.name, f".{folder.name}.lock"}  # nothing half-made
    model, tokenizer = policy.load_policy(str(folder))
    assert 400_000 < model.num_parameters() < 600_000
    assert model.config.model_type == "qwen2"
    assert tokenizer.padding_side == "left"


def test_embedded_policy_is_the_same_each_time_and_leaves_the_random_state(quick: Path) -> None:
    state = torch.random.get_rng_state()
    first, _ = policy.load_policy(str(policy.embedded_policy()))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    shutil.rmtree(policy.embedded_policy())
    second, _ = policy.load_policy(str(policy.embedded_policy()))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def refusal(model: Path | str) -> str:
    with pytest.raises(InputError) as refused:
        policy.load_policy(str(model))
    return str(refused.value)


def test_a_folder_without_a_model_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    (run / "tokenizer").mkdir(parents=True)
    assert refusal(run).endswith(
        "the folder holds no config.json: expected a folder written by save_pretrained, or one with a GGUF file"
    )
    policy.character_tokenizer("01").save_pretrained(run)  # the model is what is missing now
    assert "the folder holds no config.json" in refusal(run)
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}")
    assert refusal(run).endswith(f"{run} is a run folder: its model is {run / 'model'}")
    monkeypatch.chdir(tmp_path)
    for name in ("nowhere", "no/where", "./no/where/at-all"):
        assert f"from {name!r}: there is no folder {name!r} here; expected" in refusal(name)


def test_unreadable_model_path(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{not json")
    for path in (str(tmp_path), str(tmp_path / "absent"), "no-such-owner/no-such-model"):
        with pytest.raises(InputError, match="cannot load a model and tokenizer from"):
            policy.load_policy(path)
