"""A start that shares more: SmolLM2, fine-tuned briefly on worked solutions.

A solution has about 80 tokens and says each step in words, so completions of one prompt share long prefixes
and part where the policy computes. Of 32 test problems a start like it had 13 right at T = 0.75.
"""

import hashlib
import random
from pathlib import Path
from typing import Any

import torch

from lambda_grpo import console, policy
from lambda_grpo.policy import cache
from lambda_grpo.tasks import Problem, word_sums
from lambda_grpo.tasks.task import Split, in_test_split

WORKED = "worked"
STEPS, BATCH, LEARNING_RATE = 24, 8, 1e-4
_SEED = 0
_WARMUP = 5  # steps
_IGNORED = -100  # transformers' label of what is not predicted


class WorkedSums(word_sums.WordSums):
    """The questions of `word-sums` with numbers up to 30, without examples; a line's end ends an answer."""

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """Random problems; one prompt in eight, chosen by checksum, belongs to the test split."""
        rng = random.Random(f"{seed} {split} worked")
        return [self.worked_problem(split, rng)[0] for _ in range(count)]

    def worked_problem(self, split: Split, rng: random.Random) -> tuple[Problem, str]:
        """A problem and its solution."""
        while True:
            has, buys, gives = rng.randint(5, 30), rng.randint(2, 12), rng.randint(2, 12)
            name, things = rng.choice(word_sums.NAMES), rng.choice(word_sums.THINGS)
            prompt = f"{word_sums.question(name, things, (has, buys, gives))}\nAnswer:"
            left = has + buys - gives
            if left > 0 and in_test_split(prompt) == (split == "test"):
                return Problem(prompt, left), _solution(name, things, (has, buys, gives))


def _solution(name: str, things: str, numbers: tuple[int, int, int]) -> str:
    has, buys, gives = numbers
    both, left = has + buys, has + buys - gives
    return (
        f" {name} has {has} {things} at the start. "
        f"Then {name} buys {buys} more {things}, so we add {has} + {buys} = {both}. "
        f"Now {name} has {both} {things}. "
        f"Then {name} gives {gives} {things} away, so we subtract {both} - {gives} = {left}. "
        f"Now {name} has {left} {things}. The answer is {left}.\n"
    )


def worked_start() -> Path:
    """The folder of the start, fine-tuned now if it is not in the cache; some minutes of one core.

    Raises:
        InputError, LambdaGRPOError: SmolLM2 is not to be had, or the cache cannot be written to.
    """
    recipe = STEPS, BATCH, LEARNING_RATE, _WARMUP, WorkedSums().worked_problem("train", _solutions())
    key = hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]

    def make(aside: Path) -> None:
        model, tokenizer = policy.load_policy(console.policy_folder(policy.SMOLLM2), dtype=torch.float32)
        with console.progress("Imitating worked solutions (once)") as shown:
            fine_tune(model, tokenizer, shown)
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)

    return cache.made_once(f"worked-start-{key}", make)


def _solutions() -> random.Random:
    """The random numbers that all worked solutions are drawn by."""
    return random.Random(f"{_SEED} solutions")


def fine_tune(model: Any, tokenizer: Any, shown: console.Shown) -> None:
    """Imitate STEPS × BATCH worked solutions of the train split, in place; the prompts are not imitated."""
    rng = _solutions()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / _WARMUP))
    model.train()
    for step in range(STEPS):
        ids, labels = _batch(tokenizer, [WorkedSums().worked_problem("train", rng) for _ in range(BATCH)])
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        shown(step + 1, STEPS, f"loss {loss.item():.3f}")
    model.eval()


def _batch(tokenizer: Any, worked: list[tuple[Problem, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) ids and labels, padded on the right, which needs no mask."""
    pairs = [
        (tokenizer(problem.prompt)["input_ids"], tokenizer(solution)["input_ids"])
        for problem, solution in worked
    ]
    width = max(len(prompt) + len(solution) for prompt, solution in pairs)
    ids = torch.full((len(pairs), width), tokenizer.pad_token_id)
    labels = torch.full((len(pairs), width), _IGNORED)
    for i, (prompt, solution) in enumerate(pairs):
        end = len(prompt) + len(solution)
        ids[i, :end] = torch.tensor(prompt + solution)
        labels[i, len(prompt) : end] = ids[i, len(prompt) : end]
    return ids, labels
