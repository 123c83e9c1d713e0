"""What a newcomer sees: no command, a misspelt flag, a package that is missing."""

import importlib.util

import pytest

from lambda_grpo import cli
from lambda_grpo.training import settings


def test_no_command_prints_help_and_three_commands_that_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: lambda-grpo")
    tries = [line.split()[1] for line in printed.partition("Try:")[2].strip().splitlines()]
    assert tries == ["train", "report", "tasks"]


def test_an_unknown_flag_names_the_nearest_and_how_to_list_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--learnin_rate", "1e-4"]) == 2
    message = capsys.readouterr().err
    assert "unknown flag '--learnin_rate': did you mean '--learning_rate'?" in message
    assert "`lambda-grpo train --help-all` lists all" in message
    assert len(message) < 200  # it used to print all 200 names


def test_vllm_that_is_not_installed_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(settings, "find_spec", lambda name: None if name == "vllm" else found(name))
    assert cli.main(["train", "--use_vllm", "true"]) == 2
    assert capsys.readouterr().err == (
        "lambda-grpo: error: use_vllm: the package vllm is not installed: pip install vllm, or leave "
        "--use_vllm away\n"
    )
