"""One of two processes of `test_two_ranks_sample_their_own_prompts`: 12 rows each."""

from pathlib import Path
from typing import Any

import torch
from tiny_trainers import GROUP, PROMPTS, completions_of, make_trainer


def main(given: str) -> None:
    drawn = {}
    for name, settings in {
        "tree": {"sampler": "tree", "top_k": 1},
        "generate": {"sampler": "generate", "top_k": 1},
        "random": {"sampler": "tree", "temperature": 1.0},
    }.items():
        drawn[name] = _drawn(Path(given) / name, settings)
        rank = torch.distributed.get_rank()
    torch.save(drawn, Path(given) / f"rank-{rank}.pt")


def _drawn(folder: Path, settings: dict[str, Any]) -> list[list[int]]:
    trainer = make_trainer(
        folder, per_device_train_batch_size=2 * GROUP, max_steps=1, max_completion_length=8, **settings
    )
    rank = trainer.accelerator.process_index
    rows = [{"prompt": prompt} for prompt in PROMPTS[2 * rank : 2 * rank + 2] for _ in range(GROUP)]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._generate_and_score_completions(rows)
    trainer.train()  # and a whole step of training goes through
    assert trainer.state.global_step == 1
    return completions_of(batch)
