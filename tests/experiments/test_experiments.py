"""`python -m experiments`: each experiment in miniature, and a comparison that can fail."""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.timing import branching_group
from experiments.common import command, config_flags, expected
from experiments.curves import curve_differences
from experiments.curves.rare_branches import HeadSums, Overshoot
from experiments.overlap import run as overlap
from lambda_grpo import InputError
from lambda_grpo.tasks import Problem

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> int:
    return command.main(arguments)


def test_help_and_the_list_load_nothing_heavy() -> None:
    for arguments in ([], ["--help"], ["cost", "--help"]):
        started = time.monotonic()
        code = f"import atexit, sys; from experiments.common import command; atexit.register(lambda: print('torch' in sys.modules)); command.main({arguments})"
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
        )
        assert result.stdout.splitlines()[-1] == "False"
        assert time.monotonic() - started < 10  # 0.2 s alone; other work may share the machine
        named = ["--group_sizes"] if arguments[:1] == ["cost"] else command.names()
        assert all(name in result.stdout for name in named)


def test_the_list_from_a_checkout() -> None:
    lines = subprocess.run(
        [sys.executable, "-m", "experiments"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.splitlines()
    names = ["binary_tree", "branching", "cost", "curves", "llm_curves", "llm_tree", "overlap"]
    assert [line.split()[0] for line in lines] == names
    assert all(line.endswith(("minutes)", "hours)")) for line in lines)


def test_a_near_miss_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("binary_tre") == 2
    assert "unknown experiment 'binary_tre': did you mean 'binary_tree'?" in capsys.readouterr().err
    assert run("cost", "--lenght", "3") == 2
    assert "did you mean '--length'?" in capsys.readouterr().err
    assert run("cost", "--length", "long") == 2
    assert "--length: expected int, got 'long'" in capsys.readouterr().err
    assert run("cost", "--length") == 2
    assert "--length: expected one argument" in capsys.readouterr().err
    assert run("cost", "3") == 2
    assert run("--quick", "--length") == 2  # flags without an experiment


@pytest.mark.parametrize("name", command.names())
def test_every_experiment_has_its_folder(name: str) -> None:
    folder = command.folder_of(name)
    assert f"python -m experiments {name}" in (folder / "README.md").read_text()
    full, quick = (config_flags.settings_of(folder / "config.yaml", part) for part in (False, True))
    assert set(quick) == set(full), "quick changes values and adds no key"
    for part in ("full", "quick"):
        assert expected.read(folder / "expected.json", part)
    assert f"[{name}](../experiments/{name}/README.md)" in (ROOT / "docs" / "reproduction.md").read_text()
    if "**Not run in full.**" in (folder / "README.md").read_text():
        assert not (folder / "results").exists(), "what was not run has no results"
        return
    figures = json.loads((folder / "results" / "results.json").read_text())["figures"]
    checks = expected.compare(figures, expected.read(folder / "expected.json", "full"))
    assert [check for check in checks if not check.agrees] == [], "what came out is what is expected"
    assert json.loads((folder / "results" / "results.json").read_text())["settings"] == full


def read(settings: dict[str, Any], *flags: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    config_flags.add_flags(parser, settings)
    return vars(parser.parse_args(config_flags.with_negative_values(flags)))


def test_flags_have_the_types_of_the_settings() -> None:
    settings = {"seeds": 40, "rates": [0.1], "credits": [], "model": "tiny"}
    flags = ["--seeds=3", "--rates", "-1e-3,2", "--credits", "a, b", "--model=tiny"]
    assert read(settings, *flags) == {
        "seeds": 3,
        "rates": [-1e-3, 2.0],
        "credits": ["a", "b"],
        "model": "tiny",
    }
    assert read(settings, "--credits", "") == {"credits": []}
    assert read(settings) == {}
    for wrong, message in (
        (["--seeds"], "--seeds: expected one argument"),
        (["--seeds", "3.5"], "--seeds: expected int, got '3.5'"),
        (["--rates", "1,high"], "--rates: expected float, got 'high'"),
    ):
        with pytest.raises(argparse.ArgumentError, match=re.escape(message)):
            read(settings, *wrong)


def test_a_truth_value_is_read_by_its_word() -> None:
    settings = {"shuffle": True, "drop_last": False}
    assert read(settings, "--shuffle", "False", "--drop-last=true") == {"shuffle": False, "drop_last": True}
    with pytest.raises(argparse.ArgumentError, match="--shuffle: expected true or false, got '0'"):
        read(settings, "--shuffle", "0")


def test_the_comparison_can_fail() -> None:
    bounds = {"a": {"low": 0.4, "high": 0.6}, "b": {"high": 1e-7}, "gone": {"low": 0}}
    good = expected.compare({"a": 0.5, "b": 2e-8, "gone": 1}, bounds)
    assert all(check.agrees for check in good)
    bad = expected.compare({"a": 0.7, "b": 2e-7}, bounds)
    assert [check.agrees for check in bad] == [False, False, False]


def test_a_broken_expected_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "expected.json"
    for content in ("", "[]", '{"full": 3}', '{"full": {"a": 0.5}}', '{"full": {"a": {"lo": 0.5}}}'):
        path.write_text(content)
        with pytest.raises(InputError, match="expected"):
            expected.read(path, "full")


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an experiment of seconds, in place of binary_tree's; its expected figure is left to fill."""
    content = yaml.safe_load((ROOT / "experiments/binary_tree/config.yaml").read_text())
    content |= {
        "seeds": 3,
        "steps": 6,
        "last_steps": 2,
        "models_at_once": 2,
        "credits": ["grpo", "lambda_grpo"],
    }
    content |= {
        "learning_rates": [1e-3],
        "control_learning_rates": [1e-3],
        "prefix_lengths": [2],
        "r_neg": [-1.0],
        "crowd_r_neg": [-1.0],
    }
    (tmp_path / "README.md").write_text("# binary_tree: in miniature\n")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(command, "folder_of", lambda name: tmp_path)
    return tmp_path


def test_binary_tree_in_miniature_disagrees_with_the_impossible(
    planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = "n=2, r_neg=-1 | lr 0.001 | grpo"
    output = planted / "out"
    (planted / "expected.json").write_text(json.dumps({"full": {figure: {"low": 1.1}}, "quick": {}}))
    assert run("binary_tree", "--output", str(output)) == 1
    assert "0 of 1 figures agree" in capsys.readouterr().out
    _, *rows = [json.loads(line) for line in (output / "runs.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * (2 + 4)  # cells × (credits + controls)
    assert all(len(row["target"]) == 3 and min(row["target"]) >= 0 for row in rows)
    results = json.loads((output / "results.json").read_text())
    assert {"anti-exploitation | lr 0.001 | lambda_grpo - grpo | low", figure} <= set(results["figures"])
    assert (output / "ranking.png").read_bytes().startswith(b"\x89PNG")
    assert (output / "curves-0.001.png").exists()
    assert run("binary_tree", "--seeds", "1", "--credits", "no_such", "-o", str(planted / "o")) == 2
    assert "unknown credit 'no_such'" in capsys.readouterr().err


def test_binary_tree_goes_on_where_it_was_stopped(
    planted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.binary_tree import toy_training

    (planted / "expected.json").write_text('{"full": {}, "quick": {}}')
    whole, stopped = planted / "whole", planted / "stopped"
    assert run("binary_tree", "-o", str(whole)) == 0
    assert "Nothing to compare with" in capsys.readouterr().out
    lines = (whole / "runs.jsonl").read_text().splitlines(keepends=True)
    stopped.mkdir()
    (stopped / "runs.jsonl").write_text("".join(lines[:11]) + lines[11][:50])  # settings, ten runs, a cut one

    trained, train = [], toy_training.train
    monkeypatch.setattr(toy_training, "train", lambda *args: trained.append(args) or train(*args))
    assert run("binary_tree", "-o", str(stopped)) == 0
    assert len(trained) == (len(lines) - 11) * 2  # 3 seeds, two at once
    assert (stopped / "runs.jsonl").read_text() == "".join(lines), "and it is what it would have been"

    assert run("binary_tree", "-o", str(stopped), "--seeds", "2") == 2
    assert (
        "under other settings (seeds was 3, is 2): go on with those, name another folder with --output"
        in capsys.readouterr().err
    )
    (stopped / "runs.jsonl").write_text('{"cell": "n=1"}\n')
    assert run("binary_tree", "-o", str(stopped)) == 2
    assert "expected our own file, with settings in line 1" in capsys.readouterr().err


def test_binary_tree_ranks_no_variant_that_lacks_a_run(planted: Path) -> None:
    (planted / "expected.json").write_text('{"full": {}, "quick": {}}')
    output = planted / "out"
    assert run("binary_tree", "-o", str(output), "--minutes", "0") == 0
    assert json.loads((output / "results.json").read_text())["figures"] == {}, "nothing has run"
    assert run("binary_tree", "-o", str(output)) == 0
    whole = json.loads((output / "results.json").read_text())["figures"]
    lines = (output / "runs.jsonl").read_text().splitlines(keepends=True)
    one = next(line for line in lines if '"variant": "lambda_grpo"' in line)
    (output / "runs.jsonl").write_text("".join(line for line in lines if line != one))
    assert run("binary_tree", "-o", str(output), "--minutes", "0") == 0
    figures = json.loads((output / "results.json").read_text())["figures"]
    assert "anti-exploration | lr 0.001 | lambda_grpo" in whole
    assert "anti-exploration | lr 0.001 | lambda_grpo" not in figures
    assert "anti-exploration | lr 0.001 | grpo" in figures


def test_cost_in_miniature(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, quick_policy: None
) -> None:
    from benchmarks import step_share

    monkeypatch.setattr(step_share, "WARM_UP", 0)
    flags = [
        "--group_sizes",
        "6",
        "--seeds",
        "0",
        "--length",
        "64",
        "--demo_pairs",
        "2",
        "--larger_pairs",
        "0",
    ]
    assert run("cost", *flags, "-o", str(tmp_path / "out")) == 0
    shown = capsys.readouterr().out
    assert "the paper: 1.19e-07, on another CPU" in shown
    assert "Not compared with what is expected: group_sizes" in shown
    figures = json.loads((tmp_path / "out" / "results.json").read_text())["figures"]
    assert 0 < figures["s/token, group of 6"] < 1e-4


def test_the_timed_groups_branch() -> None:
    group = branching_group(8, 100)
    assert len(group) == 8
    assert all(50 <= len(row) < 100 for row in group)
    assert len({int(row[0]) for row in group}) < 8


def test_overlap_trains_and_reads_any_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quick_policy: None
) -> None:
    flags = ["--tasks", "thinking-sums", "--group_sizes", "3", "--steps", "3"]
    assert run("overlap", *flags, "-o", str(tmp_path / "trained")) == 0
    curves = json.loads((tmp_path / "trained" / "curves.json").read_text())
    assert curves["thinking-sums, groups of 3"]["step"] == [1, 2, 3]
    assert "of 12" in capsys.readouterr().out  # groups: 3 steps of 4 prompts

    folder = tmp_path / "run"
    folder.mkdir()
    names = {"tree/path_depth": 1.5, "tree/intermediate_proportion": 0.25, "tree/flat_groups": 0.5}
    row = {"step": 1, "reward": 0.1, **names}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"step": 1, "eval_reward": 1}))
    assert overlap.read(folder)["path depth"] == [1.5]
    assert run("overlap", "--runs", str(folder), "-o", str(tmp_path / "read")) == 0
    figures = json.loads((tmp_path / "read" / "results.json").read_text())["figures"]
    assert figures[f"{folder} | share of flat groups"] == 0.5
    assert (tmp_path / "read" / "overlap.png").exists()
    assert run("overlap", "--runs", str(tmp_path), "-o", str(tmp_path / "none")) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_curves_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str], quick_policy: None) -> None:
    flags = ["--tasks", "experiments.curves.rare_branches:HeadSums", "--credits", "grpo,lambda_grpo"]
    flags += ["--seeds", "1", "--steps", "2", "--validate_every", "1", "--validation_problems", "8"]
    assert run("curves", *flags, "-o", str(tmp_path / "out")) == 0
    assert "wins" not in capsys.readouterr().out, "one seed gives no verdict"
    settings, *rows = [
        json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()
    ]
    assert settings["settings"]["validation_problems"] == 8
    assert [row["credit"] for row in rows] == ["grpo", "lambda_grpo"]
    assert all(row["steps"] == [0, 1, 2] and row["seconds"][2] > row["seconds"][1] > 0 for row in rows)
    assert rows[0]["accuracy"][0] == rows[1]["accuracy"][0], "the same policy and problems at the start"
    assert (tmp_path / "out" / "curves.png").exists()


def test_what_curves_come_to_by_hand() -> None:
    """λ-GRPO's peaks are 0.1 above grpo's in each of five seeds, then below in each, then on both sides."""

    def rows(credit: str, peaks: list[float]) -> list[dict[str, Any]]:
        return [
            {"task": "m:T", "credit": credit, "seed": i, "steps": [0, 5, 10], "accuracy": [0.1, p, 0.2]}
            for i, p in enumerate(peaks)
        ]

    base = [0.5, 0.6, 0.4, 0.5, 0.5]
    for change, verdict in (([0.1] * 5, "wins"), ([-0.1] * 5, "loses"), ([0.1, -0.1, 0.1, -0.1, 0], "ties")):
        peaks = [b + c for b, c in zip(base, change, strict=True)]
        grpo, other = curve_differences.compare([*rows("grpo", base), *rows("lambda_grpo", peaks)])
        assert (grpo.verdict, other.verdict) == ("", verdict)
        assert other.differences["peak"].mean == pytest.approx(sum(change) / 5)
        assert other.estimates["step of the peak"].mean == 5
        flat = curve_differences.flat([grpo, other])
        assert flat["T | grpo | peak"] == 0.5
        assert flat["T | grpo | peak | low"] == pytest.approx(0.5 - 2.776 * 0.070711 / 5**0.5, abs=1e-4)
        few = curve_differences.compare([*rows("grpo", base[:4]), *rows("lambda_grpo", peaks[:4])])
        assert few[1].verdict == "too few seeds"
        assert flat["T | lambda_grpo - grpo | peak"] == pytest.approx(sum(change) / 5)


def test_what_the_rare_branches_earn() -> None:
    problem = Problem("1+2+3=", 6)
    assert [HeadSums().score(problem, text) for text in (".6", "?3,6", ".7", "")] == [1, 0.3, 0, 0]
    assert [Overshoot().score(problem, text) for text in (".11", ".10", ".6", "?3,6", ".", "")] == [
        1, -0.5, -0.5, 0, -0.5, 0,
    ]  # fmt: skip
