"""One of two processes of `test_a_job_of_two_processes`: both use one run folder, train, and resume exactly."""

from pathlib import Path

import pytest
import torch
from tiny_trainers import make_trainer

from lambda_grpo import InputError
from lambda_grpo.engines.trl import checkpoint_folders
from lambda_grpo.training import start_or_resume


def main(given: str) -> None:
    folder = Path(given)
    settings = {"per_device_train_batch_size": 6, "steps_per_generation": 2, "num_iterations": 2, "max_steps": 4,
                "gradient_accumulation_steps": 1, "save_strategy": "steps", "save_steps": 1}  # fmt: skip
    whole = make_trainer(folder / "out", **settings)
    with start_or_resume.opened(start_or_resume.WantedRun(folder / "run", {})) as checkpoint:
        assert checkpoint is None
    with (
        pytest.raises(InputError, match="already holds other files"),
        start_or_resume.opened(start_or_resume.WantedRun(folder / "out", {})),
    ):
        pass
    whole.train()
    assert [checkpoint_folders.is_whole(path) for path in checkpoint_folders.find(folder / "out")] == [
        True
    ] * 4
    resumed = make_trainer(folder / "out", **settings)
    resumed.train(resume_from_checkpoint=str(folder / "out" / "checkpoint-3"))
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
