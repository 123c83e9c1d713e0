"""The embedded policy, taught the two tasks of long_sums.py by demonstrations; made once and cached."""

import hashlib
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.branching import long_sums
from lambda_grpo import console, policy
from lambda_grpo.policy import cache

TAUGHT = "taught"


@dataclass(frozen=True)
class Teaching:
    """How the policy is taught; part of the cache's key."""

    steps: int = 3000
    batch_size: int = 64
    learning_rate: float = 2e-3
    seed: int = 0


TEACHING = Teaching()


def taught_policy() -> Path:
    """The folder of the policy, taught now if it is not in the cache.

    Raises:
        LambdaGRPOError: the cache cannot be written to.
    """
    start = console.embedded_policy()
    source = "".join(Path(module).read_text() for module in (long_sums.__file__, __file__))
    key = hashlib.sha256(f"{start.name} {source} {asdict(TEACHING)}".encode()).hexdigest()[:12]

    def make(aside: Path) -> None:
        model, tokenizer = policy.load_policy(str(start), dtype="float32")
        with console.progress("Teaching long sums") as shown:
            teach(model, tokenizer, shown)
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)

    return cache.made_once(f"long-sums-{key}", make)


def teach(model: Any, tokenizer: Any, shown: console.Shown) -> None:
    """Imitate demonstrations of both tasks, half of each batch one task."""
    rng = random.Random(f"{TEACHING.seed} demonstrations")
    optimizer = torch.optim.AdamW(model.parameters(), TEACHING.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, TEACHING.learning_rate, total_steps=TEACHING.steps, pct_start=0.1
    )
    model.train()
    for step in range(TEACHING.steps):
        ids, labels = _batch(tokenizer, rng)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        shown(step + 1, TEACHING.steps, f"loss {loss.item():.3f}")
    model.eval()


def _batch(tokenizer: Any, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels (B, T), padded on the right; prompts and padding are unlabelled."""
    tasks = [long_sums.TASKS[i % 2]() for i in range(TEACHING.batch_size)]
    pairs = [task.demonstration(rng) for task in tasks]
    rows = tokenizer([prompt + answer for prompt, answer in pairs])["input_ids"]
    ids = torch.full((len(rows), max(map(len, rows)) + 1), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for i, (row, (prompt, _)) in enumerate(zip(rows, pairs, strict=True)):
        ids[i, : len(row) + 1] = torch.tensor([*row, tokenizer.eos_token_id])
        labels[i, len(prompt) : len(row) + 1] = ids[i, len(prompt) : len(row) + 1]
    return ids, labels
