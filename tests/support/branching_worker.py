"""One of two processes of `test_two_ranks_fork_alike`: 12 rows each, two groups of six."""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from tiny_trainers import GROUP, PROMPTS, completions_of, make_trainer

from lambda_grpo import fork_chooser

SETTINGS: dict[str, Any] = {
    "sampler": "tree", "temperature": 1.0, "credit": "branch", "per_device_train_batch_size": 2 * GROUP,
    "save_strategy": "steps", "save_steps": 1,
}  # fmt: skip
FORKS: dict[str, Any] = {"branch_depths": [2], "branch_factors": [3]}


def late(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Every token may change it, so that the first ones decide little."""
    return [float(sum(ids) % 3) for ids in completion_ids]


def main(given: str) -> None:
    fork_chooser.TRIED_GROUPS = 4
    _fixed(Path(given) / "fixed")
    _chosen(Path(given) / "chosen")


def _fixed(folder: Path) -> None:
    """What both drew is logged as their sum, and groups are forked."""
    trainer = make_trainer(folder, **SETTINGS, **FORKS, max_steps=2)
    rank = trainer.accelerator.process_index
    rows = [{"prompt": prompt} for prompt in PROMPTS[2 * rank : 2 * rank + 2] for _ in range(GROUP)]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    completions = completions_of(trainer._generate_and_score_completions(rows))
    roots = [completions[i : i + 3] for i in range(0, len(completions), 3)]
    assert all(len({tuple(ids[:2]) for ids in root}) == 1 for root in roots)
    drawn = sum(len(root[0][:2]) + sum(len(ids[2:]) for ids in root) for root in roots)
    assert trainer._metrics["train"]["tree/sampled_tokens"] == [sum(gather_object([drawn]))]
    distinct = [len({tuple(ids) for ids in completions[i : i + GROUP]}) for i in (0, GROUP)]
    everywhere = gather_object(distinct)
    assert trainer._metrics["train"]["tree/distinct_completions"] == [sum(everywhere) / len(everywhere)]
    trainer.train()
    assert trainer.state.global_step == 2


def _chosen(folder: Path) -> None:
    """Both choose the same depths from the groups of both, and choose them again after a kill."""
    found = []
    for checkpoint in (None, folder / "checkpoint-4"):
        trainer = make_trainer(
            folder, **SETTINGS, branch_depths="auto", max_steps=7, trainer_kwargs={"reward_funcs": late}
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        state = trainer._chooser.state()
        first, other = gather_object([state])
        assert first == other
        assert len(state["records"]) > 4
        assert len(state["lengths"]) == 7 * len(PROMPTS) * GROUP
        weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        rows = [row["branch/depth"] for row in trainer.state.log_history if "branch/depth" in row]
        found.append((state, weights, rows))
    (state, weights, rows), (state_again, weights_again, rows_again) = found
    assert state == state_again
    assert rows == rows_again
    assert len(set(rows)) > 1
    assert torch.equal(weights, weights_again)
