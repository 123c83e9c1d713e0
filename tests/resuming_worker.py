"""One of two processes of `test_a_job_of_two_processes`: both use one run folder, train, and resume exactly."""

import sys
from pathlib import Path

import pytest
import torch
from test_trl_engine import make_trainer

from lambda_grpo import InputError, checkpoints, resume


def main(folder: Path) -> None:
    settings = {"per_device_train_batch_size": 6, "steps_per_generation": 2, "num_iterations": 2, "max_steps": 4,
                "gradient_accumulation_steps": 1, "save_strategy": "steps", "save_steps": 1}  # fmt: skip
    whole = make_trainer(folder / "out", **settings)
    with resume.opened(resume.Run(folder / "run", {})) as checkpoint:
        assert checkpoint is None
    with (
        pytest.raises(InputError, match="already holds other files"),
        resume.opened(resume.Run(folder / "out", {})),
    ):
        pass
    whole.train()
    assert [checkpoints.is_whole(path) for path in checkpoints.find(folder / "out")] == [True] * 4
    resumed = make_trainer(folder / "out", **settings)
    # transformers 5.10 reads an optimiser onto "cpu:0", which torch refuses; on GPUs the name is right.
    resumed.args.__dict__["_setup_devices"] = torch.device("cpu")
    resumed.train(resume_from_checkpoint=str(folder / "out" / "checkpoint-3"))
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
