"""Validation on held-out problems: the best checkpoint is the best, and training does not notice."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from lambda_grpo import InputError, cli, policy
from lambda_grpo.tasks import Problem, Split, ThinkingSums, thinking_sums
from lambda_grpo.training import callbacks, run_folder, splits, train
from lambda_grpo.training.settings import resolve
from lambda_grpo.training.splits import Sizes

pytestmark = pytest.mark.usefixtures("quick_policy")

TASKS = Path(__file__).parents[1] / "support" / "varied_task.py"
SMALL = [
    "--per_device_train_batch_size=8", "--num_generations=4", "--eval_problems=8", "--train_problems=200",
    "--validation_problems=6", "--learning_rate=1e-3", f"--task={TASKS}:Varied",
]  # fmt: skip


def run(folder: Path, *arguments: str) -> int:
    return cli.main(["train", *SMALL, "--output_dir", str(folder), *arguments])


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def digest(model: torch.nn.Module) -> str:
    hashed = hashlib.sha256()
    for parameter in model.parameters():
        hashed.update(parameter.detach().numpy().tobytes())
    return hashed.hexdigest()


class Planted(train._Trainer):
    """Validation finds the rewards of `plan`; remembers the policy at each."""

    plan: Mapping[int, float]
    seen: dict[int, str]

    def _calculate_rewards(self, *args: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(*args)
        if not self.model.training:
            self.seen[self.state.global_step] = digest(self.model)
            rewards[:] = self.plan[self.state.global_step]
        return rewards


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> type[Planted]:
    Planted.seen = {}
    monkeypatch.setattr(train, "_Trainer", Planted)
    return Planted


def test_the_best_checkpoint_is_kept(
    planted: type[Planted], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reward peaks in the middle, and step 0 was better still, but is no checkpoint."""
    planted.plan = {0: 0.875, 2: 0.25, 4: 0.75, 6: 0.5, 7: 0.75}
    folder = tmp_path / "run"
    assert run(folder, "--max_steps=7", "--validate_every=2") == 0
    assert len(set(planted.seen.values())) == 5  # or the next line shows nothing
    assert digest(policy.load_policy(str(folder / "model"))[0]) == planted.seen[4]
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-4"]
    found = results(folder)
    assert (found["steps"], found["model_step"]) == (7, 4)
    assert found["validation"] == {
        "metric": "eval_reward", "best_step": 4, "best_value": 0.75, "start_value": 0.875,
        "every": 2, "problems": 6, "problems_from": "test",
    }  # fmt: skip
    rows = [row for row in run_folder.read_metrics(folder) if "eval_reward" in row]
    assert {row["step"]: row["eval_reward"] for row in rows} == planted.plan
    assert {"eval_tree/path_depth", "eval_credit/mean_weight", "eval_task/thinking"} <= set(rows[0])
    shown = capsys.readouterr().out
    assert "after (step 4)" in shown
    assert "best in validation: step 4, eval_reward 0.750 (0.875 at the start), on 6" in shown
    assert "missing keys" not in shown
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["validate_every"] == 2


def test_early_stopping_stops(planted: type[Planted], tmp_path: Path) -> None:
    """0.75 at step 2 is not beaten at 3 and 4: patience 2 is over."""
    planted.plan = {0: 0.1, 1: 0.5, 2: 0.75, 3: 0.75, 4: 0.25}
    arguments = ["--max_steps=9", "--validate_every=1", "--early_stopping_patience=2"]
    assert run(tmp_path / "run", *arguments) == 0
    found = results(tmp_path / "run")
    assert (found["steps"], found["model_step"]) == (4, 2)
    assert [row["step"] for row in run_folder.read_metrics(tmp_path / "run") if "loss" in row] == [1, 2, 3, 4]


def test_training_does_not_notice(tmp_path: Path) -> None:
    """The same losses with and without validation; and config.yaml repeats validation too."""
    noisy = f"--task={TASKS}:Noisy"
    assert run(tmp_path / "without", "--max_steps=4", noisy) == 0
    assert run(tmp_path / "with", "--max_steps=4", "--validate_every=2", noisy) == 0
    again = ["train", "--config", str(tmp_path / "with/config.yaml"), "--output_dir", str(tmp_path / "again")]
    assert cli.main(again) == 0
    rows = {name: run_folder.read_metrics(tmp_path / name) for name in ("without", "with", "again")}
    losses = {name: [row["loss"] for row in rows[name] if "loss" in row] for name in rows}
    assert losses["without"] == losses["with"] == losses["again"]
    assert len({*losses["with"], 0.0}) == 5
    validated = [[row["eval_reward"] for row in rows[name] if "eval_loss" in row] for name in rows]
    assert validated[0] == []
    assert len(validated[1]) == 3
    assert validated[1] == validated[2]
    assert results(tmp_path / "without")["validation"] is None


class Recorder(TrainerCallback):
    """What `report_to` makes of its name is a callback, such as tensorboard's or wandb's."""

    names: set[str] = set()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        Recorder.names |= set(logs)


def test_report_to_and_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`report_to` receives trees and credits; the report is refreshed while the run trains."""
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "recorder", Recorder)
    monkeypatch.setattr(callbacks, "_REPORT_SHARE", 100.0)
    steps = []
    write = callbacks.ReportWriter.write

    def spy(report: callbacks.ReportWriter) -> None:
        write(report)
        content = json.loads((tmp_path / "run/report.json").read_text())
        steps.append(len(content["steps"]["step"]))

    monkeypatch.setattr(callbacks.ReportWriter, "write", spy)
    arguments = ["--max_steps=5", "--report_every=2", "--validate_every=5", "--report_to", "recorder"]
    assert run(tmp_path / "run", *arguments) == 0
    assert steps == [2, 4, 5]
    assert (tmp_path / "run/report.html").read_text().startswith("<!")
    group = json.loads((tmp_path / "run/report.json").read_text())["groups"][0]
    texts = "".join(str(part) for text in group["nodes"]["text"] for part in text)
    assert set(texts.replace("<eos>", "").replace("<unk>", "")) <= set(thinking_sums.CHARACTERS)
    for name in ("tree/path_depth", "tree/shared_tokens", "tree/flat_groups", "credit/mean_weight"):
        assert {name, f"eval_{name}"} <= Recorder.names


def test_a_slow_report_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A report that takes 1 s may come every 10 s; one that cannot be written stops nothing."""
    report = callbacks.ReportWriter([tmp_path], tmp_path / "report.html", tmp_path)
    refresh = callbacks.Refresh(report, every=1)
    state = type("State", (), {"global_step": 1, "max_steps": 9, "is_world_process_zero": True})
    refresh.on_step_end(None, state, None)
    assert refresh.passed_over == 0
    assert "holds no rollouts" in " ".join(capsys.readouterr().out.split())
    refresh.seconds = 1.0
    refresh.on_step_end(None, state, None)
    refresh.ended -= 11
    refresh.on_step_end(None, state, None)
    assert refresh.passed_over == 1
    refresh.on_train_end(None, state, None)
    assert "of 3 refreshes of the report 1 passed over" in capsys.readouterr().out


class Fixed:
    """A task with fixed lists of prompts."""

    def __init__(self, train: Sequence[str], test: Sequence[str]) -> None:
        self.prompts = {"train": train, "test": test}

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        prompts = self.prompts[split]
        repeated = [prompts[i % len(prompts)] for i in range(count)]
        return [Problem(p, None) for p in (repeated if split == "train" else prompts[:count])]


def prompts(problems: Sequence[Problem]) -> list[str]:
    return [problem.prompt for problem in problems]


def test_validation_is_disjoint() -> None:
    """Of sums, of which many are drawn twice, none is in two parts, and none twice in validation."""
    task = ThinkingSums()
    drawn = splits.draw(task, Sizes(2000, 64, 512), seed=3)
    train_set, held, test = (set(prompts(part)) for part in (drawn.train, drawn.validation, drawn.test))
    assert len(test) < 512  # duplicates there are, and they are the table's
    assert len(held) == len(drawn.validation) == 64
    assert not held & train_set
    assert not held & test
    assert drawn.validation_from == "test"
    assert drawn.train == task.problems("train", 2000, 3)  # neither training nor the table changes
    assert drawn.test == task.problems("test", 512, 3)
    assert splits.draw(task, Sizes(2000, 64, 512), seed=3) == drawn
    assert splits.draw(task, Sizes(20, 0, 8), seed=3).validation == []


def test_what_the_table_leaves_comes_first() -> None:
    """Test prompts a b c d, two in the table; b is also in the training set, d too: only c is left."""
    task = Fixed(train="xyzbd", test="abcd")
    assert prompts(splits.draw(task, Sizes(5, 1, 2), 0).validation) == ["c"]
    drawn = splits.draw(task, Sizes(10, 2, 2), 0)  # two are not left: hold two of x y z d out
    assert drawn.validation_from == "train"
    held = set(prompts(drawn.validation))
    assert len(held) == 2
    assert held < set("xyzd")  # b is in the table
    assert set(prompts(drawn.train)) == set("xyzbd") - held
    assert len(drawn.train) == 6  # both repetitions of each are gone
    with pytest.raises(InputError, match="more than half of the 4 distinct training prompts"):
        splits.draw(task, Sizes(10, 3, 2), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--validate_every=-1"], "validate_every: expected at least 0, got -1"),
        (["--validation_problems=0", "--validate_every=2"], "validation_problems: expected at least 1"),
        (["--early_stopping_patience=2"], "early_stopping_patience needs validation: set validate_every"),
        (["--eval_strategy=steps", "--eval_steps=5"], "need validation problems: set validate_every"),
        (["--validate_every=2", "--eval_steps=3"], "validate_every is 2, but eval_steps is 3"),
        (["--validate_every=2", "--save_steps=4"], "save_steps is 4, so the best"),
        (["--validate_every=2", "--save_strategy=no"], "save and eval strategy to match"),
        (["--validate_every=2", "--per_device_eval_batch_size=6"], "generations used for evaluation (4)"),
        (["--train_problems=1"], "train_problems: 1 problems are left to train on, and a step takes 2"),
        (["--report_every=2", "--save_rollouts=false"], "report_every needs the rollouts"),
        (["--validate_every=2", f"--task={TASKS}:Few"], "more than half of the 4 distinct"),
    ],
)
def test_mistakes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert run(tmp_path / "run", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unknown_metric_is_found_before_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["--validate_every=50", "--metric_for_best_model=accuracy"]
    assert run(tmp_path / "run", *arguments) == 2
    message = capsys.readouterr().err
    assert "metric_for_best_model is 'accuracy', but validation at step 0" in message
    assert "eval_reward" in message


def test_batches_of_validation_hold_whole_groups_of_equal_number() -> None:
    """64 prompts of 8, and at most 256 / 8 = 32 prompts a batch: 32. Of 60 prompts: 30. Of 7, at 8 rows: 1."""
    for arguments, rows in (
        (["--validation_problems=64"], 256),
        (["--validation_problems=60"], 240),
        (["--validation_problems=7", "--per_device_train_batch_size=8"], 8),
        (["--validation_problems=64", "--num_generations_eval=1"], 64),
    ):
        config = resolve("default", ["--validate_every=5", *arguments]).config
        assert config.per_device_eval_batch_size == rows
