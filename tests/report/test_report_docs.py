"""The documents, the example and the benchmark do what they say."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rollout_samples import write_run

from lambda_grpo.report.analysis import GROUP_MEASURES
from lambda_grpo.rollouts import RolloutReader

ROOT = Path(__file__).parents[2]


def test_the_schema_of_rollouts(tmp_path):
    (snippet,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs/rollouts.md").read_text(), re.S)
    (tmp_path / "r.jsonl").write_text(snippet)
    (group,) = RolloutReader([tmp_path])
    # "7", "+", "2", " =", " 9", "," and then " 9", "+", "13", " =", " 22", "." or " so", " 21", ".".
    assert [len(ids) for ids in group.token_ids] == [12, 9, 9, 12]
    assert group.rewards.tolist() == [1, 0, 0, 1]


def test_every_measure_is_defined():
    text = (ROOT / "docs/report.md").read_text()
    measures = {re.sub("_(grpo|lambda)$", "", name) for name in GROUP_MEASURES}
    simple = {"reward", "accuracy", "length", "unique_tokens"}
    assert measures - simple <= set(re.findall(r"\| `(\w+)` \|", text))


def test_the_example_runs(tmp_path):
    run = write_run(tmp_path / "run", steps=1, groups=2)
    for arguments in ([], [str(run)]):
        command = [sys.executable, str(ROOT / "examples/analyse_rollouts.py"), *arguments]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert "path_depth" in shown
    # The made-up group: "Add them: 7+2 =" is 7 tokens shared by three, two of them wrong: A = -0.289.
    shown = subprocess.run(command[:2], check=True, capture_output=True, text=True).stdout
    assert re.search(r"advantage +-?0 +-0\.289", shown)


@pytest.mark.slow
def test_the_benchmark_runs():
    command = [sys.executable, str(ROOT / "benchmarks/report.py"), "--completions", "400"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "50 groups in full" in re.sub(r"\d+ of ", "", shown)
    assert np.all([name in shown for name in ("trees", "whole report", "peak memory", "page")])
