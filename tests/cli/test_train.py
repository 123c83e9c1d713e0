"""`lambda-grpo train` as a newcomer runs it, mistakes included, on a policy pre-trained for a few steps."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from lambda_grpo import InputError, cli, policy
from lambda_grpo.evaluating.evaluation import bootstrap
from lambda_grpo.training import run_folder
from lambda_grpo.training.settings import resolve

SMALL = [
    "--max_steps",
    "2",
    "--per_device_train_batch_size",
    "8",
    "--num_generations",
    "4",
    "--eval_problems",
    "8",
]


pytestmark = pytest.mark.usefixtures("quick_policy")


def run(*arguments: str) -> int:
    return cli.main(["train", *SMALL, *arguments])


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert run("--output_dir", str(folder)) == 0
    shown = capsys.readouterr().out
    for words in ("sampled accuracy", "greedy accuracy", "thinking rate", "mean length", str(folder)):
        assert words in shown.replace("\n", "")
    metrics = run_folder.read_metrics(folder)
    assert [row["step"] for row in metrics] == [1, 2]
    assert {"tree/path_depth", "credit/mean_weight", "task/thinking", "reward"} <= set(metrics[0])
    tables = [pq.read_table(path) for path in sorted((folder / "rollouts").iterdir())]
    assert [len(table) for table in tables] == [8, 8]
    assert tables[0].column_names == [
        "step", "group", "prompt", "completion", "token_ids", "reward", "advantage", "prompt_ids"
    ]  # fmt: skip
    results = json.loads((folder / "results.json").read_text())
    assert 0 <= results["after"]["sampled_accuracy"]["low"] <= results["after"]["sampled_accuracy"]["mean"]
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    policy.load_policy(str(folder / "model"))
    assert not list(folder.rglob("*.partial"))

    # Its config.yaml is a recipe that repeats it, and the trained policy is a model like any other.
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["max_steps"] == 2
    again = tmp_path / "again"
    assert cli.main(["train", "--config", str(folder / "config.yaml"), "--output_dir", str(again)]) == 0
    first, second = (run_folder.read_metrics(f)[-1]["loss"] for f in (folder, again))
    assert first == second
    third = tmp_path / "third"
    assert run("--model", str(folder / "model"), "--credit", "grpo", "--output_dir", str(third)) == 0
    assert {row["credit/mean_weight"] for row in run_folder.read_metrics(third)} == {1.0}


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    started = time.monotonic()
    assert run(*arguments) == 2
    assert time.monotonic() - started < 5  # before anything long runs
    message = capsys.readouterr().err
    assert message.startswith("lambda-grpo: error: ")
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "thinking-sum"], "unknown task 'thinking-sum': did you mean 'thinking-sums'"),
        (["--credit", "lambda"], "unknown credit 'lambda'"),
        (["--learning_rat", "1"], "unknown flag '--learning_rat': did you mean '--learning_rate'"),
        (
            ["--learning-rate", "fast"],
            "argument --learning_rate/--learning-rate: invalid float value: 'fast'",
        ),
        (["thinking"], "unexpected argument 'thinking'"),
        (["--config", "defualt"], "unknown recipe 'defualt': did you mean 'default'"),
        (["--dtype", "bf16"], "dtype: got 'bf16', expected one of float32, bfloat16, float16, auto"),
        (["--config", "absent.yaml"], "recipe 'absent.yaml': cannot be read"),
        (["--model", "no/such-model"], "cannot load a model and tokenizer from 'no/such-model'"),
        (
            ["--num_generations", "3"],
            "num_generations: got 3, expected a divisor of generation_batch_size, which is 8, such as 2 or 4; or "
            "set per_device_train_batch_size to a multiple of 3",
        ),
        (["--loss_type", "dappo"], "unknown loss_type 'dappo': did you mean 'dapo'"),
        (["--max_steps", "0"], "max_steps: got 0, which trains nothing: `lambda-grpo eval` answers problems"),
        (
            ["--max_steps", "-3"],
            "max_steps: got -3, expected at least 1, or -1 for as many as num_train_epochs",
        ),
        (["--credit", "Lambda_GRPO"], "unknown credit 'Lambda_GRPO': did you mean 'lambda_grpo'?"),
        (["--max_steps=-1", "--num_train_epochs=0"], "num_train_epochs: got 0, which trains nothing"),
        (["--learning_rate=-1", "--dry_run"], "learning_rate: got -1.0, expected 0 or more"),
    ],
)
def test_mistakes(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_recipes_with_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    for content, message in (
        ("creditt: grpo\n", "key in recipe"),
        ("credit: [\n", "cannot be read"),
        ("- credit\n", "expected `key: value` lines, got list"),
        ("!!python/object:os.system {}\n", "cannot be read"),
    ):
        recipe.write_text(content)
        assert message in fails(capsys, "--config", str(recipe))
    recipe.write_text("creditt: grpo\n")
    assert "did you mean 'credit'" in fails(capsys, "--config", str(recipe))


def test_an_output_folder_in_use_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine")
    assert "config.yaml that is not of a run there" in fails(capsys, "--output_dir", str(tmp_path))
    assert (tmp_path / "config.yaml").read_text() == "mine"
    (tmp_path / "file").write_text("")
    assert "cannot be used as a folder" in fails(capsys, "--output_dir", str(tmp_path / "file"))


def test_flags_lie_over_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("learning_rate: 1e-5\nnum_generations: 4\nbeta: 0.04\ncredit: process\n")
    settings = resolve(str(recipe), ["--beta", "0.1", "--output_dir=here", "--no_shuffle_dataset"])
    config = settings.config
    assert (config.learning_rate, config.beta, config.credit) == (1e-5, 0.1, "process")
    assert config.shuffle_dataset is False
    assert settings.explicit == {
        "learning_rate": 1e-5, "num_generations": 4, "beta": 0.1, "credit": "process",
        "output_dir": "here", "shuffle_dataset": False,
    }  # fmt: skip
    with pytest.raises(InputError, match="unknown parameter|takes no parameters"):
        resolve(str(recipe), ["--credit_kwargs", '{"tau": 1}'])
    powered = resolve(str(recipe), ["--credit", "lambda_grpo", "--credit_kwargs", '{"power": 0.5}'])
    assert powered.config.credit_kwargs == {"power": 0.5}


def test_bootstrap_interval_of_a_proportion() -> None:
    # 300 ones of 1000: standard error sqrt(.3 × .7 / 1000) = .01449, so about .3 ± .0284.
    estimate = bootstrap([1] * 300 + [0] * 700)
    assert estimate.mean == pytest.approx(0.3)
    assert (estimate.low, estimate.high) == pytest.approx((0.2716, 0.3284), abs=0.003)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["eval", "--help"], ["--version"]])
def test_light_commands_start_fast(arguments: list[str]) -> None:
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "lambda_grpo.cli", *arguments], check=True, capture_output=True)
    assert time.monotonic() - started < 2


def test_a_missing_extra_is_named() -> None:
    code = "import sys; sys.modules['trl'] = None; from lambda_grpo import cli; sys.exit(cli.main(['train']))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "needs the package trl, which is not installed: pip install 'lambda-grpo[train]'" in result.stderr


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            "1 / 0",
            "the task failed to score '.*' in answer to '.*': ZeroDivisionError: division by zero .*line 9",
        ),
        ("float('nan')", "with nan: expected a finite number, or None"),
        ("'right'", "with 'right': expected a finite number, or None"),
    ],
)
def test_a_task_whose_scores_are_unusable(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, returned: str, message: str
) -> None:
    (tmp_path / "mine.py").write_text(
        "from lambda_grpo.tasks import ThinkingSums\n\n\n"
        "class Mine(ThinkingSums):\n"
        "    calls = 0\n\n"
        "    def score(self, problem, completion):\n"
        "        self.calls += 1\n"
        f"        return 1.0 if self.calls <= 16 else {returned}\n"  # the evaluation before goes well
    )
    task, folder = f"{tmp_path / 'mine.py'}:Mine", str(tmp_path / "run")
    assert run("--task", task, "--output_dir", folder) == 2
    assert re.search(message, capsys.readouterr().err)
