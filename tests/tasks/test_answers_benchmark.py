"""`benchmarks/answers.py` on a folder of made-up rows."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from lambda_grpo.tasks import get_task

pytest.importorskip("math_verify")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "answers.py"
FOLDER = os.environ.get("PUBLISHED_DATA", "")


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("answers_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_right_missed_and_coinciding_answers_are_told_apart(script, tmp_path, monkeypatch, capsys):
    write(
        tmp_path / "aime24.jsonl",
        [
            {"problem": "a?", "solution": r"$\boxed{\textbf{(073)}}$", "answer": "073"},
            {"problem": "b?", "solution": r"So $\boxed{5}$.", "answer": "6"},  # planted: missed
            {"problem": "c?", "solution": "none", "answer": "73"},  # coincides with the first
        ],
    )
    write(
        tmp_path / "gsm8k-test.jsonl",
        [{"question": f"{n}?", "answer": f"So <<{n}={n}>>{n}.\n#### {n}"} for n in (18, 3)],
    )
    monkeypatch.setattr(sys, "argv", ["answers.py", str(tmp_path), "--others", "2"])
    assert script.main() == 0
    shown = capsys.readouterr().out
    assert "aime24, missed: row 2" in shown
    # Three problems, two other answers each; 073 and 73 meet twice.
    assert "| `aime24` | 2 of 3 | 6 | 0 | 2 |" in shown
    assert "| `gsm8k-test` | 2 of 2 | 2 | 0 | 0 |" in shown


def test_a_false_positive_is_counted(script):
    benchmark = script.Benchmark(
        "b", "", [script.Problem("a", r"\boxed{1}"), script.Problem("b", r"\boxed{2}")]
    )
    object.__setattr__(benchmark, "score", lambda problem, completion: 1.0)  # planted: all is right
    assert len(script.check("b", benchmark, ["1", "2"], 1)["wrongly"]) == 2


def test_a_folder_without_files_is_refused(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["answers.py", str(tmp_path)])
    assert script.main() == 1
    assert "expected a file such as aime24.jsonl" in capsys.readouterr().err


@pytest.mark.skipif(
    not Path(FOLDER, "gsm8k-test.jsonl").is_file(), reason="PUBLISHED_DATA names no folder with it"
)
def test_published_gsm8k_as_a_task():
    """Every row's answer is read, and its own worked solution scores 1."""
    task = get_task(f"jsonl:{FOLDER}/gsm8k-test.jsonl")
    rows = [
        json.loads(line) for line in Path(FOLDER, "gsm8k-test.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    solutions = {row["question"]: row["answer"] for row in rows}
    problems = task.problems("train", 300, 0) + task.problems("test", 10**4, 0)
    assert not task.unparsable
    wrong = [p.answer for p in problems if task.score(p, solutions[p.prompt]) != 1]
    assert not wrong
    assert all(
        p.answer == rf"\boxed{{{solutions[p.prompt].split('#### ')[1].replace(',', '')}}}" for p in problems
    )
