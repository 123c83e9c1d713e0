"""What a newcomer sees: no command, a misspelt flag, a package that is missing."""

import importlib.util
import io
import sys
from pathlib import Path

import pytest
from rollout_samples import BY_HAND, write_jsonl

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


def written_in(encoding: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What a command writes to a terminal of that encoding."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(arguments) == 0
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_encoding_without_greek_gets_escapes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str
) -> None:
    assert r"\u03bb-GRPO and its process trees." in written_in(encoding, monkeypatch)
    rollouts = write_jsonl(tmp_path / "λ.jsonl", BY_HAND)
    page = tmp_path / "λ.html"
    said = written_in(encoding, monkeypatch, "report", str(rollouts), "-o", str(page))
    assert r"\u03bb.html: 1 group measured" in said
    assert page.exists()


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("command", [["tasks"], ["report"], ["--help"]])
def test_output_that_cannot_be_written_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str]
) -> None:
    if command == ["report"]:
        command += [str(write_jsonl(tmp_path / "r.jsonl", BY_HAND)), "-o", str(tmp_path / "r.html")]
    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(command) == 2
        # Closing the stream writes what it still holds, and must not fail again.
    said = capsys.readouterr().err
    assert said == "lambda-grpo: error: cannot write: [Errno 28] No space left on device\n"


def test_another_system_error_of_a_command_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cli, "_tasks", refused)
    with pytest.raises(PermissionError):
        cli.main(["tasks"])


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


def stopped(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command says of arguments that cannot be parsed."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "r.jsonl", "--corect-at", "1"], "--corect-at 1: did you mean '--correct-at'?"),
        (["report", "r.jsonl", "--corect_at=1"], "--corect_at=1: did you mean '--correct_at'?"),
        (["watch", "run", "--prot", "1"], "--prot 1: did you mean '--port'?"),
        (["eval", "m", "--sample", "2"], "--sample 2: did you mean '--samples'?"),
        (["tasks", "all"], "unrecognized arguments: all\n"),
    ],
)
def test_an_unknown_option_names_the_nearest_of_its_command(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    said = stopped(capsys, *arguments)
    assert said.startswith(f"usage: lambda-grpo {arguments[0]} ")
    assert f"lambda-grpo {arguments[0]}: error: unrecognized arguments: " in said
    assert message in said


@pytest.mark.parametrize(("given", "meant"), [("task", "tasks"), ("TRAIN", "train")])
def test_an_unknown_command_names_the_nearest(
    capsys: pytest.CaptureFixture[str], given: str, meant: str
) -> None:
    said = stopped(capsys, given)
    assert said.startswith("usage: lambda-grpo [-h]")
    assert (
        f"unknown command '{given}': did you mean '{meant}'? Known: effect, eval, report, tasks, train, watch"
        in said
    )


@pytest.mark.parametrize("command", ["report", "watch", "effect", "eval", "train"])
def test_help_names_the_spelling_with_underscores_first(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    options = [
        line.replace(",", "").split() for line in capsys.readouterr().out.splitlines() if "  --" in line
    ]
    firsts = [next(word for word in words if word.startswith("--")) for words in options]
    assert len(firsts) > 3
    assert [first for first in firsts if "-" in first[2:] and first != "--help-all"] == []


@pytest.mark.parametrize("mark", ["-", "_"])
def test_report_takes_both_spellings(capsys: pytest.CaptureFixture[str], tmp_path: Path, mark: str) -> None:
    rows = [*BY_HAND, {"group": "alone", "completion": "x", "reward": 1}]
    paths = [str(write_jsonl(tmp_path / "r.jsonl", rows)), "-o", str(tmp_path / "out.html")]
    flags = [f"--skip{mark}bad", f"--group{mark}size", "4", f"--correct{mark}at", "0.5"]
    assert cli.main(["report", *paths, *flags]) == 0
    assert "left out: 1 row (" in capsys.readouterr().err
