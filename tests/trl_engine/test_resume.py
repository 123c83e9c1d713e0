"""A killed run goes on as if it had not been killed; a run folder is used by one process at a time."""

import errno
import fcntl
import json
import multiprocessing
import os
import re
import resource
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import stress_resume
import torch
import yaml
from jobs import Jobs
from tiny_trainers import make_trainer, qwen2
from transformers import TrainerCallback
from trl import GRPOTrainer

from lambda_grpo import InputError, LambdaGRPOError, cli
from lambda_grpo.engines.trl import checkpoint_folders, checkpoint_state
from lambda_grpo.engines.trl import sampling as trl_sampling
from lambda_grpo.engines.trl.packing import TreePacking
from lambda_grpo.engines.trl.sampling import TreeSampling
from lambda_grpo.rollouts.paths import find_runs
from lambda_grpo.rollouts.writing import truncate_rollouts
from lambda_grpo.training import run_folder, start_or_resume
from lambda_grpo.training.settings import resolve
from lambda_grpo.whole_files import folder_written_whole, write_yaml

SMALL = [
    "--per_device_train_batch_size=8", "--num_generations=4", "--eval_problems=8", "--train_problems=40",
    "--max_steps=4", "--save_steps=2", "--save_total_limit=1",
]  # fmt: skip
MID_BUFFER = {
    "steps_per_generation": 3,
    "num_iterations": 2,
    "per_device_train_batch_size": 8,
    "logging_steps": 4,
}


@pytest.mark.slow
def test_three_trials_of_the_stress_script(tmp_path: Path) -> None:
    """Two by time, one at a file operation, in mid-buffer; uninterrupted once."""
    stress = stress_resume.Stress(tmp_path, seed=time.time_ns())
    for number in range(3):
        print(stress.trial(number, "mid-buffer", kills=1))


def trained(folder: Path, checkpoint: int = 0, **settings: Any) -> Any:
    """A trainer after all its steps, or after those that a checkpoint of an earlier one leaves."""
    trainer = make_trainer(folder, save_strategy="steps", save_steps=1, **settings)
    source = folder / f"checkpoint-{checkpoint}"
    trainer.train(resume_from_checkpoint=str(source) if checkpoint else None)
    return trainer


def outcome(trainer: Any) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    rows = [
        {name: row[name] for name in sorted(row) if "time" not in name and "per_second" not in name}
        for row in trainer.state.log_history
        if "loss" in row
    ]
    return [parameter.detach().clone() for parameter in trainer.model.parameters()], rows


def same(first: Any, second: Any) -> bool:
    weights = all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    return weights and repr(first[1]) == repr(second[1])


@pytest.mark.parametrize(
    ("checkpoint", "settings"),
    [
        (2, {}),
        (
            2,
            {"shuffle_dataset": True, "per_device_train_batch_size": 12, "max_steps": 5},
        ),  # epochs of two steps
        (3, {"shuffle_dataset": True, "per_device_train_batch_size": 12, "max_steps": 5}),
        (4, {**MID_BUFFER, "max_steps": 8, "beta": 0.1}),
        (2, {**MID_BUFFER, "max_steps": 5, "gradient_accumulation_steps": 2}),
        (2, {"sampler": "tree"}),
        (2, {"sampler": "tree", "branch_depths": [2], "branch_factors": [3], "credit": "branch"}),
        (3, {**MID_BUFFER, "max_steps": 8, "sampler": "auto"}),
        (2, {"use_adaptive_entropy": True, "entropy_target": 1.2, "entropy_coef": 0.1}),
        (2, {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5}),
    ],
)
def test_resumed_exactly(tmp_path: Path, checkpoint: int, settings: dict[str, Any]) -> None:
    whole = outcome(trained(tmp_path, **settings))
    assert same(whole, outcome(trained(tmp_path, checkpoint, **settings)))
    assert not torch.equal(whole[0][0], torch.zeros_like(whole[0][0]))


def test_what_a_reward_function_logs_is_restored(tmp_path: Path) -> None:
    """TRL writes the table at each logged line; numpy's numbers would need code to be read back."""

    def reward(completions: list[str], log_extra: Any, log_metric: Any, **_: Any) -> list[float]:
        log_extra("letters", list(np.array([len(text) for text in completions], np.float32)))
        log_metric("longest", np.max([len(text) for text in completions]))
        return [float(len(text)) for text in completions]

    settings = {**MID_BUFFER, "max_steps": 4, "log_completions": True}
    tables = []
    for checkpoint in (0, 2):
        trained(tmp_path, checkpoint, trainer_kwargs={"reward_funcs": reward}, **settings)
        tables.append(pq.read_table(tmp_path / "completions" / "completions_00004.parquet"))
    assert "letters" in tables[0].column_names
    assert tables[0].num_rows == 24
    assert tables[1].to_pylist() == tables[0].to_pylist()


@pytest.mark.parametrize("kept", [True, False])
def test_packing_that_was_given_up_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """Dropout forbids to pack the policy's pass, and with it the reference's, which has none and could be."""
    if not kept:
        monkeypatch.delattr(TreePacking, "load_kept_state")
    settings = {**MID_BUFFER, "max_steps": 9, "beta": 0.1, "tree_packing": "on", "logging_steps": 1}

    def dropping_out() -> Any:
        model = qwen2()
        model.config.attention_dropout = 0.1
        return model

    whole = outcome(trained(tmp_path, model=dropping_out(), **settings))
    assert same(whole, outcome(trained(tmp_path, 5, model=dropping_out(), **settings))) == kept


@pytest.mark.parametrize("kept", [True, False])
def test_sampling_that_was_given_up_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """A run that tries again takes a random number for it, and so draws other completions."""
    if not kept:
        monkeypatch.delattr(TreeSampling, "load_kept_state")

    def failing(*_: Any) -> Any:
        raise InputError("it cannot be sampled so")

    monkeypatch.setattr(trl_sampling, "sample_on_tree", failing)
    settings = {"max_steps": 5, "sampler": "auto"}
    whole = outcome(trained(tmp_path, **settings))
    assert same(whole, outcome(trained(tmp_path, 3, **settings))) == kept


@pytest.mark.parametrize("fault", ["buffer", "order"])
def test_the_comparison_would_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Without what we keep, TRL goes on with other completions, or draws the first epoch's order again."""
    settings = {**MID_BUFFER, "max_steps": 5}
    if fault == "order":
        settings = {"shuffle_dataset": True, "per_device_train_batch_size": 12, "max_steps": 5}
    whole = outcome(trained(tmp_path, **settings))
    monkeypatch.setattr(checkpoint_state.Resumable, "_load_rng_state", GRPOTrainer._load_rng_state)
    if fault == "order":
        monkeypatch.setattr(checkpoint_state.Resumable, "_run_epoch", GRPOTrainer._run_epoch)
    assert not same(whole, outcome(trained(tmp_path, 3, **settings)))


@pytest.mark.slow
def test_a_job_of_two_processes(jobs: Jobs, tmp_path: Path) -> None:
    """Both may use the run folder; each restores its own completions, in mid-buffer too."""
    job = jobs.start(tmp_path, call="resuming_worker:main")
    assert job.wait(300) == 0, job.output()


def test_the_last_whole_checkpoint_is_taken(tmp_path: Path) -> None:
    """Of a half-written, a half-deleted and a whole one; rollouts from there on are sampled again."""
    whole = outcome(trained(tmp_path, save_rollouts=True))
    before = {path.name: path.read_bytes() for path in (tmp_path / "rollouts").iterdir()}
    (tmp_path / "checkpoint-3" / checkpoint_folders.SEAL).unlink()
    (tmp_path / "checkpoint-2" / "optimizer.pt").write_bytes(b"half")
    assert [checkpoint_folders.is_whole(path) for path in checkpoint_folders.find(tmp_path)] == [
        True,
        False,
        False,
    ]
    tables = [tmp_path / "completions" / f"completions_{step:05d}.parquet" for step in (2, 3)]
    tables[0].parent.mkdir()
    for table in tables:
        table.touch()
    truncate_rollouts(tmp_path, 2)
    assert [table.exists() for table in tables] == [True, False]
    trainer = make_trainer(tmp_path, save_rollouts=True)
    trainer.train(resume_from_checkpoint=True)
    assert same(whole, outcome(trainer))
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "rollouts").iterdir()}
    (tmp_path / "checkpoint-1" / checkpoint_folders.SEAL).write_text("{")
    with pytest.raises(InputError, match="no whole checkpoint .*: checkpoint-1, checkpoint-2, checkpoint-3"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)


def rollout_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_fresh_run_sets_earlier_rollouts_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Three steps, then one, then one: each is in a folder of its own, and a report reads the last."""
    for steps in (3, 1, 1):
        make_trainer(tmp_path, max_steps=steps, save_rollouts=True).train()
    first = [f"step-00000{step}-rank-0.parquet" for step in range(3)]
    assert rollout_names(tmp_path / "rollouts-1") == first
    assert rollout_names(tmp_path / "rollouts-2") == rollout_names(tmp_path / "rollouts") == first[:1]
    assert [record.args for record in caplog.records if "of another run" in record.message] == [
        (tmp_path / "rollouts-1",),
        (tmp_path / "rollouts-2",),
    ]
    make_trainer(tmp_path, max_steps=1).train()  # writes no rollouts
    assert not (tmp_path / "rollouts-3").exists()
    assert [len(run.files) for run in find_runs([tmp_path])] == [1]


def test_a_checkpoint_of_another_folder_deletes_no_rollouts(tmp_path: Path) -> None:
    trained(tmp_path / "other", max_steps=1)
    make_trainer(tmp_path / "run", save_rollouts=True).train()
    before = rollout_names(tmp_path / "run/rollouts")
    trainer = make_trainer(tmp_path / "run", max_steps=2, save_rollouts=True)
    trainer.train(resume_from_checkpoint=str(tmp_path / "other/checkpoint-1"))
    assert len(before) == 3
    assert rollout_names(tmp_path / "run/rollouts-1") == before
    assert rollout_names(tmp_path / "run/rollouts") == ["step-000001-rank-0.parquet"]


@pytest.mark.parametrize("name", ["checkpoint-2", "linked/checkpoint-2"])
def test_a_checkpoint_of_this_folder_keeps_its_rollouts(tmp_path: Path, name: str) -> None:
    """By whichever path it is named."""
    folder = tmp_path / "run"
    (tmp_path / "linked").symlink_to(folder)
    trained(folder, save_rollouts=True)
    before = {path.name: path.read_bytes() for path in (folder / "rollouts").iterdir()}
    path = tmp_path / name if "/" in name else folder / name
    make_trainer(folder, save_rollouts=True).train(resume_from_checkpoint=str(path))
    assert before == {path.name: path.read_bytes() for path in (folder / "rollouts").iterdir()}
    assert not (folder / "rollouts-1").exists()


def test_rotation_spares_the_best_and_the_last(tmp_path: Path) -> None:
    """Of 1 2 3 10 with limit 2, 1 the best and 10 the last, both stay; 3 too if the limit is 3."""
    folders = {n: tmp_path / f"checkpoint-{n}" for n in (1, 2, 3, 10)}
    for folder in folders.values():
        folder.mkdir()
    keep = {folders[1], folders[10]}
    checkpoint_folders.rotate(tmp_path, 0, keep)
    assert len(checkpoint_folders.find(tmp_path)) == 4
    checkpoint_folders.rotate(tmp_path, 3, keep)
    assert [checkpoint_folders.step_of(path) for path in checkpoint_folders.find(tmp_path)] == [1, 3, 10]
    checkpoint_folders.rotate(tmp_path, 1, keep)
    assert [checkpoint_folders.step_of(path) for path in checkpoint_folders.find(tmp_path)] == [1, 10]


class Killed(BaseException):
    pass


class Kill(TrainerCallback):
    """Stands for a kill at the end of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise Killed


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stress_resume.make_model(tmp_path_factory.mktemp("model"))


def command(model: Path, folder: Path, *more: str) -> list[str]:
    return ["train", f"--model={model}", f"--output_dir={folder}", *SMALL, *more]


def test_the_same_command(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Goes on after a kill, says so when finished, refuses other settings, starts over when told to."""
    from lambda_grpo.training import callbacks

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Log, "on_step_begin", Kill(3).on_step_begin)
        with pytest.raises(Killed):
            cli.main(command(model, folder))
    assert [row["step"] for row in run_folder.read_metrics(folder)] == [1, 2, 3]
    with (folder / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 4, "lo')
    (folder / ".model.partial").mkdir()
    capsys.readouterr()
    assert cli.main(command(model, folder)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "goes on from the checkpoint of step 2" in shown
    assert "Evaluating before" not in shown
    assert [row["step"] for row in run_folder.read_metrics(folder)] == [1, 2, 3, 4]
    results = json.loads((folder / "results.json").read_text())
    assert (results["steps"], results["resumed_from"]) == (4, 2)
    assert not list(folder.glob(".*.partial"))

    assert cli.main(command(model, folder)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "finished before: nothing was done" in shown
    assert "sampled accuracy" in shown
    assert cli.main(command(model, folder, "--max_steps=5", "--beta=0.1")) == 2
    message = capsys.readouterr().err
    assert "a run with other settings" in message
    assert "max_steps: 4 → 5; beta: the default → 0.1" in message
    assert cli.main(command(model, folder, "--max_steps=3", "--overwrite")) == 0
    assert [row["step"] for row in run_folder.read_metrics(folder)] == [1, 2, 3]
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-3"]
    assert len(list((folder / "rollouts").iterdir())) == 3
    assert "overwrite" not in yaml.safe_load((folder / "config.yaml").read_text())


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_what_is_no_run_is_left_alone(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overwrite: list[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert cli.main(command(model, tmp_path, *overwrite)) == 2
    assert "already holds other files (thesis.tex)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("overwrite", "config", "reason"),
    [
        (False, "service: my-web-app\nport: 8080\n", "'service' is no setting"),
        (True, "service: my-web-app\nport: 8080\n", "'service' is no setting"),
        (False, "- service\n", "it is not a list of settings"),
        (True, "- service\n", "it is not a list of settings"),
        (False, "max_steps: 3\n", "it has no output_dir"),  # a recipe
        (True, "max_steps: 3\n", "it has no output_dir"),
        (True, "max_steps: 3\noutput_dir: runs/first\n", "its output_dir is 'runs/first'"),
    ],
)
def test_a_config_of_another_program_is_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, config: str, reason: str
) -> None:
    """Not one file of such a folder is removed, though their names are those of a run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint-500").mkdir()
    files = [tmp_path / name for name in ("config.yaml", "README.md", "checkpoint-500/model.bin")]
    for file in files:
        file.write_text(config)
    run = start_or_resume.WantedRun(tmp_path, {"max_steps": 3, "output_dir": str(tmp_path)}, overwrite)
    with pytest.raises(InputError, match=re.escape(reason)), start_or_resume.opened(run):
        pass
    assert [file.read_text() for file in files] == [config] * 3


def test_a_run_in_a_renamed_folder_goes_on(tmp_path: Path) -> None:
    write_yaml(tmp_path / "config.yaml", {"max_steps": 3, "output_dir": "runs/first"})
    (tmp_path / "before.json").touch()
    run = start_or_resume.WantedRun(tmp_path, {"max_steps": 3, "output_dir": str(tmp_path)})
    with start_or_resume.opened(run):
        assert (tmp_path / "before.json").exists()


def test_overwriting_a_run_leaves_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run may have been moved with the folder around it, and be named by another path."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("README.md", "results.json", "notes.txt", "results-2.json"):
        (folder / name).touch()
    write_yaml(folder / "config.yaml", {"max_steps": 2, "output_dir": "elsewhere/run"})
    monkeypatch.chdir(folder)
    settings = {"max_steps": 3, "output_dir": "."}
    with start_or_resume.opened(start_or_resume.WantedRun(Path("."), settings, overwrite=True)) as checkpoint:
        assert checkpoint is None
        assert {path.name for path in folder.iterdir()} == {".lock", "notes.txt", "results-2.json"}


def test_one_process_at_a_time(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second is refused while the first lives, and not once it was killed, even if it left a child."""
    folder = tmp_path / "run"
    code = (
        "import os, sys, time; from pathlib import Path; from lambda_grpo.training import start_or_resume\n"
        "with start_or_resume.opened(start_or_resume.WantedRun(Path(sys.argv[1]), {})):\n"
        "    if os.fork() == 0: time.sleep(9); os._exit(0)\n"
        "    print('open', flush=True); time.sleep(99)"
    )
    first = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "open\n"
        assert cli.main(command(model, folder)) == 2
        assert f"is in use by another process ({first.pid})" in capsys.readouterr().err
    finally:
        first.kill()
        first.wait()
    with start_or_resume.opened(start_or_resume.WantedRun(folder, {})) as checkpoint:
        assert checkpoint is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mount is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk(model: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The disk fills up after the first checkpoint: a clear error, and with room it goes on from there."""
    folder, filler = small_disk / "run", small_disk / "filler"

    class Fill(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            statistics = os.statvfs(small_disk)
            filler.write_bytes(bytes(statistics.f_bavail * statistics.f_frsize - 60_000))

    from lambda_grpo.training import callbacks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.Log, "on_save", Fill().on_save, raising=False)
        assert cli.main(command(model, folder, "--save_rollouts=false")) == 2
    message = capsys.readouterr().err
    assert "checkpoint-4' could not be written" in message
    assert "checkpoint-2 is good" in message
    assert "Traceback" not in message
    assert [checkpoint_folders.is_whole(path) for path in checkpoint_folders.find(folder)] == [True]
    filler.unlink()
    assert cli.main(command(model, folder, "--save_rollouts=false")) == 0
    assert "goes on from the checkpoint of step 2" in " ".join(capsys.readouterr().out.split())


def fail_to_sync(monkeypatch: pytest.MonkeyPatch, failing: Any, number: int) -> None:
    """`os.fsync` fails for the handles that are `failing`."""
    fsync = os.fsync

    def stand_in(handle: int) -> None:
        if failing(handle):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", stand_in)


def is_folder(handle: int) -> bool:
    return stat.S_ISDIR(os.fstat(handle).st_mode)


def may_not_write(handle: int) -> bool:
    return not is_folder(handle) and fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


@pytest.mark.parametrize(
    ("failing", "number"),
    [
        (is_folder, errno.EINVAL),
        (is_folder, errno.ENOTSUP),
        (is_folder, errno.EACCES),
        (may_not_write, errno.EBADF),  # Windows
    ],
)
def test_systems_that_bring_no_folder_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: Any, number: int
) -> None:
    """A checkpoint is whole there too, and what is written aside is renamed."""
    fail_to_sync(monkeypatch, failing, number)
    (tmp_path / "checkpoint-1" / "adapter").mkdir(parents=True)
    (tmp_path / "checkpoint-1" / "adapter" / "weights").write_bytes(b"0" * 9)
    checkpoint_folders.seal(tmp_path / "checkpoint-1")
    assert checkpoint_folders.last_whole(tmp_path) == tmp_path / "checkpoint-1"
    with folder_written_whole(tmp_path / "model") as aside:
        aside.mkdir()
    assert (tmp_path / "model").is_dir()


@pytest.mark.parametrize(
    ("failing", "number"), [(is_folder, errno.EIO), (lambda handle: not is_folder(handle), errno.EINVAL)]
)
def test_a_disk_that_fails_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: Any, number: int
) -> None:
    (tmp_path / "weights").write_bytes(b"0" * 9)
    fail_to_sync(monkeypatch, failing, number)
    with pytest.raises(OSError, match=os.strerror(number)):
        checkpoint_folders.seal(tmp_path)
    assert not checkpoint_folders.is_whole(tmp_path)


def test_files_may_not_grow(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk where nothing can be mounted."""
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Limit(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))

    trainer.add_callback(Limit())
    try:
        with pytest.raises(LambdaGRPOError, match="checkpoint-2' could not be written.*checkpoint-1 is good"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in checkpoint_folders.find(tmp_path)] == ["checkpoint-1"]
    assert checkpoint_folders.is_whole(tmp_path / "checkpoint-1")


def _as_nobody(folder: Path, said: Any) -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        with start_or_resume.opened(start_or_resume.WantedRun(folder, {})):
            said.put("opened")
    except LambdaGRPOError as error:
        said.put(str(error))


def test_a_read_only_folder(tmp_path: Path) -> None:
    """`root` may write anywhere, so the child process is nobody."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o555)
    for parent in [tmp_path, *tmp_path.parents[:2]]:
        parent.chmod(0o755)
    said = multiprocessing.get_context("fork").Queue()
    child = multiprocessing.get_context("fork").Process(target=_as_nobody, args=(folder, said))
    child.start()
    assert "cannot be used as a folder: [Errno 13] Permission denied" in said.get(timeout=20)
    child.join()


def test_disk_errors_within_a_run_are_explained(tmp_path: Path) -> None:
    """What metrics.jsonl or rollouts meet: /dev/full is full."""
    with (
        pytest.raises(LambdaGRPOError, match="No space left on device.*give the same command again"),
        start_or_resume.opened(start_or_resume.WantedRun(tmp_path / "run", {})),
    ):
        (tmp_path / "run" / "metrics.jsonl").symlink_to("/dev/full")
        run_folder.append_metrics(tmp_path / "run", {"step": 1})
    with (
        pytest.raises(FileNotFoundError),
        start_or_resume.opened(start_or_resume.WantedRun(tmp_path / "other", {})),
    ):
        (tmp_path / "absent").read_text()  # no fault of the disk: passed on


def test_settings_that_only_validate_keep_a_checkpoint_to_go_on_from() -> None:
    config = resolve("default", ["--validate_every=5"]).config
    assert (config.save_strategy, config.save_steps, config.save_total_limit) == ("steps", 5, 1)
    assert resolve("default", []).config.save_steps == 20


def test_early_stopping_survives(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A best at step 1, none at 2, a kill in step 3, none at 3: patience 2 is over, as it would have been."""
    from lambda_grpo.training import callbacks, train

    plan = {0: 0.125, 1: 0.75, 2: 0.5, 3: 0.25}

    class Planted(train._Trainer):
        def _calculate_rewards(self, *args: Any) -> torch.Tensor:
            rewards = super()._calculate_rewards(*args)
            if not self.model.training:
                rewards[:] = plan[self.state.global_step]
            return rewards

    monkeypatch.setattr(train, "_Trainer", Planted)
    more = ["--validate_every=1", "--validation_problems=4", "--early_stopping_patience=2", "--max_steps=9",
            "--save_steps=1"]  # fmt: skip
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Log, "on_step_begin", Kill(2).on_step_begin)
        with pytest.raises(Killed):
            cli.main(command(model, folder, *more))
    assert cli.main(command(model, folder, *more)) == 0
    results = json.loads((folder / "results.json").read_text())
    assert (results["steps"], results["model_step"], results["resumed_from"]) == (3, 1, 2)
    rows = [row for row in run_folder.read_metrics(folder) if "eval_reward" in row]
    assert {row["step"]: row["eval_reward"] for row in rows} == plan
    (folder / "results.json").unlink()  # killed after the last step, before the end
    assert cli.main(command(model, folder, *more)) == 0
    assert json.loads((folder / "results.json").read_text())["steps"] == 3
