"""One of two processes of `test_a_group_that_straddles_two_processes`: 12 rows each, groups of 8."""

import json
from pathlib import Path

from tiny_trainers import PROMPTS, make_trainer


def main(given: str) -> None:
    folder = Path(given)
    trainer = make_trainer(
        folder / "out", per_device_train_batch_size=12, num_generations=8, save_rollouts=True, max_steps=1
    )
    rank = trainer.accelerator.process_index
    rows = [{"prompt": prompt} for prompt in PROMPTS[:3] for _ in range(8)][12 * rank : 12 * rank + 12]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._generate_and_score_completions(rows)
    report = {
        "ids": trainer._scored.completion_ids,
        "weights": batch["credit_weights"].tolist(),
        "logged": {
            name: values[0]
            for name, values in trainer._metrics["train"].items()
            if name.startswith(("tree/", "credit/"))
        },
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(report))
    trainer.train()  # and a whole step of training goes through
    assert trainer.state.global_step == 1
