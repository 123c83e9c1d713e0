"""Every command and snippet of the README runs, and prints what the README shows."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lambda_grpo.policy import Pretraining

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def test_the_library_in_ten_lines() -> None:
    shown = re.search(r"```python\n[^`]*ProcessTree\.build.*?```\n\n```text\n(.*?)```", README, re.DOTALL)[1]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(PYTHON[0], {})
    assert printed.getvalue() == shown


def test_use_with_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippet itself, with a small local policy in place of the Hub's and for two steps on the CPU."""
    from lambda_grpo import policy

    monkeypatch.setattr(policy, "PRETRAINING", Pretraining(steps=3, batch_size=8))
    monkeypatch.setenv("LAMBDA_GRPO_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code = PYTHON[1].replace("Qwen/Qwen2.5-0.5B-Instruct", str(policy.embedded_policy()))
    code = code.replace(
        'output_dir="out"', 'output_dir="out", use_cpu=True, bf16=False, max_steps=2, max_completion_length=8'
    )
    assert code.count("max_steps") == 1
    names: dict = {}
    exec(code, names)
    assert names["trainer"].state.global_step == 2


def test_every_command_is_tested() -> None:
    """A command added to the README must be added to a test below."""
    commands = [line.split("#")[0].strip() for block in SHELL for line in block.splitlines()]
    assert commands == ["make demo", "make test"]  # CI calls `make test` itself


@pytest.mark.slow
def test_make_demo(tmp_path: Path) -> None:
    """What `make demo` runs, from an empty cache: from at most 0.55 sampled accuracy to at least 0.75."""
    recipe = (ROOT / "Makefile").read_text()
    command = re.search(r"^demo:.*\n\t\$\(BIN\)/(lambda-grpo .*)$", recipe, re.MULTILINE)[1]
    environment = os.environ | {"LAMBDA_GRPO_CACHE": str(tmp_path / "cache")}
    environment["OMP_NUM_THREADS"] = str(os.cpu_count())
    arguments = [sys.executable, "-m", "lambda_grpo.cli", *command.split()[1:]]
    subprocess.run(arguments, check=True, cwd=tmp_path, env=environment, timeout=1200)
    (results,) = tmp_path.glob("runs/thinking-sums-lambda_grpo-*/results.json")
    table = json.loads(results.read_text())
    assert table["before"]["sampled_accuracy"]["mean"] <= 0.55
    assert table["after"]["sampled_accuracy"]["mean"] >= 0.75
    assert table["after"]["traits"]["thinking"] > table["before"]["traits"]["thinking"] + 0.3
