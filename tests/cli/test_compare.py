"""`--compare`: the same start, seed and data for every credit; equal credits give equal runs."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from lambda_grpo import InputError, cli
from lambda_grpo.credit import CREDITS, TokenCredit, grpo, lambda_grpo
from lambda_grpo.training import run_folder
from lambda_grpo.training.settings import resolve

pytestmark = pytest.mark.usefixtures("quick_policy")

SMALL = ["--max_steps=3", "--per_device_train_batch_size=8", "--num_generations=4", "--eval_problems=8",
         "--validate_every=2", "--validation_problems=4", "--learning_rate=1e-3",
         f"--task={Path(__file__).parents[1] / 'support' / 'varied_task.py'}:Varied"]  # fmt: skip


def twin(tree: Any, rewards: Any, *, advantages: Any = None, mask: Any = None) -> TokenCredit:
    return grpo(tree, rewards, advantages=advantages, mask=mask)


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in run_folder.read_metrics(folder) if "loss" in row]


def test_equal_credits_give_equal_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(CREDITS, "twin", twin)
    folder = tmp_path / "run"
    arguments = ["train", *SMALL, "--compare", "grpo,twin,lambda_grpo", "--output_dir", str(folder)]
    assert cli.main(arguments) == 0
    content = json.loads((folder / "compare.json").read_text())
    assert content["same_start"] is True
    same, other = content["credits"]["grpo"], content["credits"]["twin"]
    for key in ("after", "steps", "model_step", "validation"):
        assert same[key] == other[key]
    assert losses(folder / "grpo") == losses(folder / "twin")
    weighted = [row["grad_norm"] for row in run_folder.read_metrics(folder / "lambda_grpo") if "loss" in row]
    plain = [row["grad_norm"] for row in run_folder.read_metrics(folder / "grpo") if "loss" in row]
    assert weighted[0] != plain[0]  # from the first step on: else the credits were not in use
    first = [run_folder.read_metrics(folder / credit)[1]["reward"] for credit in content["credits"]]
    assert len(set(first)) == 1  # but what they sampled first is the same

    for credit in content["credits"]:
        config = yaml.safe_load((folder / credit / "config.yaml").read_text())
        assert config["credit"] == credit
        assert "compare" not in config
        assert (folder / credit / "report.html").exists()
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((folder / "report.json").read_text())
    assert [read["name"] for read in report["runs"]] == list(content["credits"])
    twins = report["comparison"]["pairs"][0]
    assert twins["same"] == twins["met"] > 0  # what they sampled is the same throughout
    shown = capsys.readouterr().out
    ending = f"the runs side by side in report.html, which `lambda-grpo report {folder}` makes anew"
    assert "".join(ending.split()) in "".join(shown.split())
    for words in ("before", "lambda_grpo", "twin", "validation", "sampled", "at step 2"):
        assert words in shown

    # What it says at its start goes on with all runs, and not with one of them alone.
    (said,) = re.findall(r"if this is stopped, `(.*)` goes on$", shown, re.M)  # on one line, to be copied
    (folder / "compare.json").unlink()
    assert cli.main(shlex.split(said)[1:]) == 0
    assert json.loads((folder / "compare.json").read_text())["credits"] == content["credits"]

    # Each run's config.yaml repeats it alone.
    again = tmp_path / "again"
    config = str(folder / "lambda_grpo/config.yaml")
    assert cli.main(["train", "--config", config, "--output_dir", str(again)]) == 0
    assert losses(again) == losses(folder / "lambda_grpo")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "grpo"], "compare: expected at least two different credits"),
        (["--compare", "grpo,grpo"], "got 'grpo,grpo'"),
        (["--compare", "grpo,lamda_grpo"], "unknown credit 'lamda_grpo': did you mean 'lambda_grpo'"),
        (["--compare", "grpo,"], "unknown credit ''"),
    ],
)
def test_mistakes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert cli.main(["train", *SMALL, "--output_dir", str(tmp_path / "run"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_list_in_a_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("compare: [grpo, lambda_grpo]\n")
    with pytest.raises(InputError, match="compare: expected names with commas between them"):
        resolve(str(tmp_path / "mine.yaml"), [])


def test_a_credit_gets_the_parameters_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def softened(
        tree: Any, rewards: Any, *, advantages: Any = None, mask: Any = None, tau: float
    ) -> TokenCredit:
        return lambda_grpo(tree, rewards, advantages=advantages, mask=mask)

    monkeypatch.setitem(CREDITS, "softened", softened)
    flags = [
        "--compare=grpo,softened",
        "--credit=softened",
        "--credit_kwargs",
        '{"tau": 0.5}',
        "--output_dir=x",
    ]
    settings = resolve("default", flags)
    runs_of = {credit: settings.for_credit(credit) for credit in settings.credits}
    assert runs_of["grpo"].config.credit_kwargs == {}
    assert runs_of["softened"].config.credit_kwargs == {"tau": 0.5}
    assert runs_of["softened"].explicit["output_dir"] == str(Path("x/softened"))
    assert settings.config.credit_kwargs == {"tau": 0.5}
