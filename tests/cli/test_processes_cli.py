"""`lambda-grpo train` as one job of two processes: one run folder, resumed exactly, and ended by whatever fails."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from jobs import Job, Jobs
from safetensors.torch import load_file
from stress_resume import content, differences, make_model

from lambda_grpo.training import run_folder
from lambda_grpo.training.settings import RECIPES

TASK = Path(__file__).parents[1] / "support" / "varied_task.py"
COMMON = [
    "--per_device_train_batch_size=8", "--num_generations=4", "--eval_problems=5", "--max_completion_length=6",
    "--max_steps=3", "--save_steps=1", "--save_total_limit=3", "--train_problems=40", "--learning_rate=1e-3",
]  # fmt: skip
THIRD_STEP = (
    6 + 2 * 8 + 1
)  # calls of `score`: the first process answers 3 of 5 problems twice, each scores 8 a step
ENDS_WITHIN = 90  # seconds, the start included


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A run by torchrun, as one types it."""
    folder = tmp_path_factory.mktemp("torchrun") / "run"
    shown = launch(
        "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "lambda_grpo.cli", *train(model, folder)
    )
    assert shown.stdout.count("Everything is in") == 1  # one process speaks
    assert "started as 2 processes again" in " ".join(shown.stdout.split())
    return folder


def train(model: Path, folder: Path, task: str = "Failing") -> list[str]:
    return ["train", f"--model={model}", f"--task={TASK}:{task}", f"--output_dir={folder}", *COMMON]


def launch(*arguments: str, status: int = 0) -> Any:
    done = subprocess.run(
        [sys.executable, *arguments], env=os.environ | {"PYTHONUNBUFFERED": "1"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert (done.returncode != 0) == status, done.stderr[-4000:]
    return done


def fail(how: str, process: int, call: int) -> dict[str, str]:
    return {"FAIL": how, "FAIL_ON": str(process), "FAIL_AT": str(call)}


def said(job: Job) -> str:
    return " ".join(job.output().split())


@pytest.mark.slow
def test_one_run_folder(whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text())
    assert results["after"]["sampled_accuracy"]["mean"] >= 0
    assert results["settings"]["eval_problems"] == 5  # three for one process, two for the other
    assert [row["step"] for row in run_folder.read_metrics(whole)] == [1, 2, 3]
    for step in range(3):
        tables = [
            pq.read_table(whole / "rollouts" / f"step-{step:06d}-rank-{rank}.parquet") for rank in (0, 1)
        ]
        assert [len(table) for table in tables] == [8, 8]
        assert [sorted(set(table["group"].to_pylist())) for table in tables] == [[0, 1], [2, 3]]
        logged = run_folder.read_metrics(whole)[step]["reward"]  # the mean over both
        rewards = [reward for table in tables for reward in table["reward"].to_pylist()]
        assert logged == pytest.approx(sum(rewards) / 16, rel=1e-6)
    assert not list(whole.rglob("*.partial"))


@pytest.mark.slow
def test_accelerate_launch_gives_the_same(whole: Path, model: Path, tmp_path: Path) -> None:
    config = RECIPES / "accelerate" / "ddp.yaml"
    launcher = ["-m", "accelerate.commands.launch", f"--config_file={config}", "--num_processes=2"]
    launch(*launcher, "-m", "lambda_grpo.cli", *train(model, tmp_path / "run"))
    assert differences(content(whole), content(tmp_path / "run")) == []


@pytest.mark.slow
def test_killed_and_resumed(whole: Path, model: Path, tmp_path: Path, jobs: Jobs) -> None:
    """A kill of the whole job in its third step; meanwhile a second job is refused, then one of another size."""
    folder, command = tmp_path / "run", train(model, tmp_path / "run")
    first = jobs.start(*command, **fail("wait", 1, THIRD_STEP))
    until = time.monotonic() + 120
    while not (folder / "checkpoint-2" / "whole.json").exists():
        assert first.alive(), first.output()
        assert time.monotonic() < until, first.output()
        time.sleep(0.1)
    second = jobs.start(*command)
    assert second.wait() == 1
    assert "is in use by another process" in said(second)
    first.kill()
    alone = jobs.start(*command, processes=1)
    assert alone.wait() == 1
    assert "checkpoint-2': got 1 processes, expected 2" in said(alone)
    last = jobs.start(*command)
    assert last.wait() == 0, last.output()
    assert "goes on from the checkpoint of step 2" in said(last)
    assert differences(content(whole), content(folder)) == []
    again = jobs.start(*command)
    assert again.wait() == 0, again.output()
    assert "finished before: nothing was done" in said(again)
    other = jobs.start(*command, "--learning_rate=1e-2")
    assert other.wait() == 1
    assert "learning_rate: 0.001 → 0.01" in said(other)


@pytest.mark.slow
def test_a_process_that_raises_or_dies_ends_the_job(model: Path, tmp_path: Path, jobs: Jobs) -> None:
    """--overwrite starts over in the folder that the first job left."""
    command = train(model, tmp_path / "run")
    raising = jobs.start(*command, **fail("raise", 1, 5))
    assert raising.wait(ENDS_WITHIN) == 1
    assert "error (process 1 of 2): " in said(raising)
    assert "ValueError: no score to be had" in said(raising)
    assert f"{TASK}, line " in said(raising)
    for process in (0, 1):
        dying = jobs.start(*command, "--overwrite", **fail("die", process, 10))
        assert dying.wait(ENDS_WITHIN) == 1
        # torchrun looks every tenth of a second: by then the other may have ended too, and be the one it names.
        killed, left = f"process {process} terminated with signal SIGKILL", " by peer"
        assert killed in said(dying) or (
            left in said(dying) and f"process {1 - process} terminated" in said(dying)
        )
        assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
def test_a_comparison(tmp_path: Path, jobs: Jobs) -> None:
    """Of the embedded policy, which one process pre-trains for both; by three processes, one problem for each."""
    arguments = ["train", "--compare=grpo,lambda_grpo", f"--output_dir={tmp_path / 'run'}", "--max_steps=1",
                 "--per_device_train_batch_size=4", "--num_generations=4", "--eval_problems=3"]  # fmt: skip
    job = jobs.start(*arguments, processes=3, LAMBDA_GRPO_CACHE=str(tmp_path / "cache"))
    assert job.wait() == 0, job.output()
    assert said(job).count("Pre-training the embedded policy") == 1
    compared = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert compared["same_start"] is True
    assert set(compared["credits"]) == {"grpo", "lambda_grpo"}
    refused = jobs.start(
        *arguments[:-1], "--eval_problems=2", f"--output_dir={tmp_path / 'other'}", processes=3
    )
    assert refused.wait() == 1
    assert "eval_problems: got 2, expected at least one for each of 3 processes" in said(refused)


@pytest.mark.slow
def test_sharded_weights(whole: Path, model: Path, tmp_path: Path, jobs: Jobs) -> None:
    """FSDP2, forced upon accelerate; killed and resumed: the weights of DDP, saved whole."""
    command = ["FULL_STATE_DICT", *train(model, tmp_path / "run")]
    assert jobs.start(*command, call="jobs:sharded", **fail("die", 1, THIRD_STEP)).wait(ENDS_WITHIN) == 1
    resumed = jobs.start(*command, call="jobs:sharded")
    assert resumed.wait() == 0, resumed.output()
    assert "goes on from the checkpoint of step 2" in said(resumed)
    start, ddp, found = (
        load_file(f / "model.safetensors") for f in (model, whole / "model", tmp_path / "run/model")
    )
    for name, weight in found.items():
        change = (ddp[name] - start[name]).abs().max()
        # The ranks' sums may round differently, and then a weight differs by its last bit, which can be 1e-4 of the change.
        last_bit = torch.from_numpy(np.spacing(ddp[name].abs().numpy()))
        assert ((weight - ddp[name]).abs() <= last_bit.clamp(min=1e-5 * change.item())).all()
    refused = jobs.start("SHARDED_STATE_DICT", *train(model, tmp_path / "other"), call="jobs:sharded")
    assert refused.wait() == 1
    assert "fsdp_state_dict_type: got SHARDED_STATE_DICT, expected FULL_STATE_DICT" in said(refused)


@pytest.mark.slow
def test_what_one_process_must_do_alone(tmp_path: Path, jobs: Jobs) -> None:
    for arguments, what in (
        (["train", "--dry_run", f"--output_dir={tmp_path / 'run'}"], "train --dry_run"),
        (["eval", "embedded", "--task=thinking-sums"], "eval"),
    ):
        job = jobs.start(*arguments)
        assert job.wait() == 1
        assert f"lambda-grpo {what}: got 2 processes, expected one" in said(job)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_that_disagree(jobs: Jobs) -> None:
    """Each says so, and with the numbers of both."""
    job = jobs.start(call="jobs:different_rows")
    assert job.wait() == 0, job.output()
    for process in (0, 1):
        assert (
            f"{process} says: the processes hold different numbers of completions: process 0: 3, process 1: 4"
            in said(job)
        )
        assert (
            f"{process} says: some processes have a tool mask and others have none: process 0: False, process 1: True"
            in said(job)
        )
