"""llm_curves in miniature, with the embedded policy in the place of SmolLM2."""

import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.common import command, resumable_runs
from experiments.common.arms import credit_of
from experiments.llm_curves import run as llm_curves
from experiments.llm_curves import what_lambda_changes, worked_start
from lambda_grpo.errors import InputError
from lambda_grpo.policy import character_tokenizer


def test_an_arm_is_a_credit_with_its_parameters() -> None:
    assert credit_of("optimistic tau=0.3") == ("optimistic", {"tau": 0.3})
    for wrong in ("lambda_grpo power", "lambda_grpo power=half"):
        with pytest.raises(InputError, match="such as 'lambda_grpo power=0.5', got"):
            credit_of(wrong)


def test_llm_curves_in_miniature(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quick_policy: None
) -> None:
    flags = ["llm_curves", "--quick", "--seeds", "1", "--steps", "2", "--validate_every", "1"]
    flags += ["--tasks", "experiments.curves.rare_branches:Overshoot"]  # its rewards differ from the start
    flags += [
        "--prompts",
        "8",
        "--validation_problems",
        "8",
        "--pilot_rates",
        "1e-3,1e-4",
        "-o",
        str(tmp_path / "out"),
    ]
    assert command.main(flags) == 0
    assert "Not compared with what is expected" in capsys.readouterr().out
    settings, *rows = [
        json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()
    ]
    assert settings["settings"]["temperature"] == 1.0
    assert [row["seed"] for row in rows] == [100] * 4 + [0] * 2, "pilots first, with a seed of their own"
    for row in rows:
        assert row["steps"] == [0, 1, 2]
        assert row["seconds"][2] > row["seconds"][1] > 0
        assert len(row["shared_tokens"]) == len(row["push_removed"]) == 2, "one for each step of training"
        assert (row["cosine"] is None) == (row["credit"] == "grpo")
    grpo, other = rows[-2:]
    assert grpo["accuracy"][0] == other["accuracy"][0], "the same policy and problems at the start"
    assert grpo["shared_tokens"][0] == other["shared_tokens"][0], "and the same first batch"
    assert 0 < other["cosine"] <= 1
    figures = json.loads((tmp_path / "out" / "results.json").read_text())["figures"]
    assert figures["Overshoot | lambda_grpo power=0.5 | cosine"] == other["cosine"]
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"curves.png", "overlap.png"}
    written = (tmp_path / "out" / "tables.md").read_text()
    ahead = figures["Overshoot | lambda_grpo power=0.5 - grpo | peak"]
    assert f"| `lambda_grpo power=0.5` − `grpo` | 0 | {ahead:+.3f} |" in written
    accuracies = " | ".join(f"{accuracy:.3f}" for accuracy in other["accuracy"])
    assert f"| 0 | `lambda_grpo power=0.5` | {accuracies} |" in written
    assert written.count("**") == 4, "the best pilot of each of the two credits"


def test_a_credit_with_an_unknown_parameter_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        command.main(["llm_curves", "--quick", "--credits", "grpo tau=1", "-o", str(tmp_path / "out")]) == 2
    )
    assert "tau" in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs.jsonl").exists()


def test_the_pilot_chooses_by_the_mean_over_its_curve() -> None:
    def pilot(credit: str, rate: float, accuracy: list[float]) -> dict[str, Any]:
        return {"task": "largest", "credit": credit, "learning_rate": rate, "accuracy": accuracy}

    rows = [pilot("grpo", 1e-5, [0.1, 0.5, 0.9]), pilot("grpo", 2e-5, [0.1, 0.9, 0.6])]  # .50, .53
    rows += [pilot("lambda_grpo", 2e-5, [0.2, 0.4]), pilot("lambda_grpo", 1e-5, [0.4, 0.2])]  # equal
    rates = llm_curves.best_rates([*rows, pilot("tempo", 1e-5, [0.9])], count=2)
    assert rates == {("largest", "grpo"): 2e-5, ("largest", "lambda_grpo"): 1e-5}
    settings = {
        "tasks": ["largest"],
        "credits": ["grpo", "lambda_grpo", "tempo"],
        "seeds": 2,
        "learning_rate": 5e-6,
        "pilot_rates": [1e-5, 2e-5],
    }
    wanted = llm_curves.paired_runs(settings, rates)
    assert [(run["seed"], run["learning_rate"]) for run in wanted] == [
        (0, 2e-5), (0, 1e-5), (1, 2e-5), (1, 1e-5)]  # fmt: skip
    assert {run["credit"] for run in wanted} == {"grpo", "lambda_grpo"}, "tempo has one pilot of two"
    wanted = llm_curves.paired_runs({**settings, "pilot_rates": []}, rates)
    assert [(run["seed"], run["learning_rate"]) for run in wanted] == [
        (0, 2e-5), (0, 1e-5), (0, 5e-6), (1, 2e-5), (1, 1e-5), (1, 5e-6)]  # fmt: skip


def test_what_lambda_changes_against_who_won_by_hand() -> None:
    """The smaller the cosine, the further behind grpo, in all five pairs: the rank correlation is 1."""
    base = {
        "task": "m:T",
        "steps": [0, 5],
        "length": [9.0],
        "path_depth": [1.0],
        "intermediate_proportion": [0.5],
    }
    base |= {"shared_tokens": [0.2, 0.4], "push_removed": [0.1, None]}
    rows = [base | {"credit": "grpo", "seed": s, "accuracy": [0.1, 0.5], "cosine": None, "norm_ratio": None}
            for s in range(5)]  # fmt: skip
    rows += [base | {"credit": "tempo", "seed": s, "accuracy": [0.1, 0.1 * s], "cosine": 0.5 + 0.1 * s, "norm_ratio": 1.0}
             for s in range(5)]  # fmt: skip
    pairs = what_lambda_changes.pairs(rows)
    assert [round(pair["ahead"], 3) for pair in pairs] == [-0.25, -0.2, -0.15, -0.1, -0.05]
    figures = what_lambda_changes.figures(rows)
    assert figures["cosine ~ mean over steps minus grpo"] == 1
    assert figures["T | tempo | cosine"] == pytest.approx(0.7)
    assert figures["T | tempo | shared_tokens, first"] == 0.2
    assert figures["T | tempo | shared_tokens, mean"] == pytest.approx(0.3)
    assert figures["T | tempo | push_removed, mean"] == 0.1
    assert "T | grpo | cosine" not in figures


def test_a_piece_begins_no_run_after_its_minutes(tmp_path: Path) -> None:
    made: list[int] = []
    wanted = [{"seed": seed} for seed in range(3)]

    def make(i: int) -> dict[str, Any]:
        made.append(i)
        return {"found": i}

    def complete() -> list[dict[str, Any]]:
        return resumable_runs.complete(tmp_path, wanted, {}, make, lambda *_: None)

    with resumable_runs.piece_of(0) as piece:
        assert complete() == []
    assert (piece.left, made) == (3, [])
    assert len(complete()) == 3, "outside a piece there is no limit"
    with resumable_runs.piece_of(0) as piece:
        assert len(complete()) == 3, "what is kept is read in any case"
    assert (piece.left, made) == (0, [0, 1, 2])


def test_worked_solutions_are_right_and_only_they_are_imitated() -> None:
    task, rng = worked_start.WorkedSums(), random.Random(0)
    worked = [task.worked_problem("train", rng) for _ in range(50)]
    assert all(task.score(problem, solution) == 1 for problem, solution in worked)
    assert all(task.score(problem, solution.replace(" is ", " is 9")) == 0 for problem, solution in worked)
    assert [problem.prompt for problem in task.problems("test", 3, 0)] == [
        problem.prompt for problem in task.problems("test", 3, 0)
    ]
    tokenizer = character_tokenizer(string.printable)
    ids, labels = worked_start._batch(tokenizer, worked[:4])
    for row, target, (problem, solution) in zip(ids, labels, worked[:4], strict=True):
        begin, end = len(problem.prompt), len(problem.prompt) + len(solution)
        assert tokenizer.decode(row[begin:end]) == solution
        assert target[begin:end].tolist() == row[begin:end].tolist()
        assert set(target[:begin].tolist()) == {-100}
        assert set(target[end:].tolist()) <= {-100}


def test_a_start_learns_worked_solutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worked_start, "STEPS", 12)
    monkeypatch.setattr(worked_start, "LEARNING_RATE", 3e-3)
    tokenizer, losses = character_tokenizer(string.printable), list[float]()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    worked_start.fine_tune(
        LlamaForCausalLM(config), tokenizer, lambda done, of, text: losses.append(float(text.split()[1]))
    )
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.5
