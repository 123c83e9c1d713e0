"""examples/own_loop.py: executed as a user does, and learning."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from lambda_grpo.policy import character_tokenizer, load_policy
from lambda_grpo.tasks import ThinkingSums, thinking_sums

SCRIPT = Path(__file__).parents[2] / "examples" / "own_loop.py"


@pytest.fixture(scope="module")
def tiny_policy(tmp_path_factory):
    """The folder of a random model of one layer that knows the task's characters."""
    torch.manual_seed(0)
    tokenizer = character_tokenizer(thinking_sums.CHARACTERS)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    folder = tmp_path_factory.mktemp("tiny")
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_it_is_short():
    assert len(SCRIPT.read_text().splitlines()) < 120


def test_it_runs_and_prints_a_reward_per_step_without_trl(tiny_policy):
    code = (
        "import runpy, sys\n"
        "sys.modules['trl'] = None  # importing it would raise\n"
        f"sys.argv = ['own_loop.py', {str(tiny_policy)!r}, '--steps', '2']\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines, start=1):
        assert re.fullmatch(rf"step +{number}  reward \d\.\d{{3}}", line)


def test_it_learns(tiny_policy, monkeypatch):
    """Rewarded for digits, a random policy soon writes more of them."""

    def share_of_digits(self, problem, completion):
        return sum(map(str.isdigit, completion)) / max(len(completion), 1)

    monkeypatch.setattr(ThinkingSums, "score", share_of_digits)
    loop = runpy.run_path(str(SCRIPT))
    loop["train"].__globals__["LEARNING_RATE"] = 3e-3
    torch.manual_seed(0)
    rewards = list(loop["train"](*load_policy(str(tiny_policy)), steps=15))
    assert sum(rewards[:3]) / 3 < 0.7
    assert sum(rewards[-3:]) / 3 > 0.9


def test_completions_continue_their_prompt_and_not_its_padding(tiny_policy, monkeypatch):
    model, tokenizer = load_policy(str(tiny_policy))
    tokenizer.padding_side = "right"  # whatever the tokenizer's own side is
    seen = {}
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **inputs: seen.update(inputs) or generate(**inputs))
    runpy.run_path(str(SCRIPT))["sample"](model, tokenizer, ["1+2=", "1+2+3+4="])
    assert seen["attention_mask"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1], [1] * 8]


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_completions_end_with_their_first_end_token(tiny_policy, pad_is_eos):
    model, tokenizer = load_policy(str(tiny_policy))
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    loop = runpy.run_path(str(SCRIPT))
    texts = ["1+2=", "1+2+3+4=", "9="] * 20
    prompts, completions = loop["sample"](model, tokenizer, texts)
    assert prompts == tokenizer(texts)["input_ids"]
    ended = 0
    for ids in completions:
        assert tokenizer.eos_token_id not in ids[:-1]
        ended += ids[-1] == tokenizer.eos_token_id
        assert len(ids) == loop["MAX_NEW_TOKENS"] or ids[-1] == tokenizer.eos_token_id
    assert 0 < ended < len(texts)
