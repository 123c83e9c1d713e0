"""The share of a training step that λ costs, on the embedded policy: TRL's trainer and ours, step by step.

Two figures. *Inside*: the time spent in our own lines within a step (trees, credit, measures, weighted
loss), TRL's taken off; the gradient's one multiplication runs in the backward and is not in it. *Paired*:
the difference of two steps on the same completions, one of each trainer, taken in turns; it holds
everything, the machine's noise included.

    python benchmarks/overhead.py
"""

import functools
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from transformers.utils import logging as transformers_logging
from trl import GRPOConfig, GRPOTrainer

from lambda_grpo import policy
from lambda_grpo.engines.trl import LambdaGRPOConfig, LambdaGRPOTrainer
from lambda_grpo.tasks import get_task

PAIRS = 60
PROMPTS, COMPLETIONS = 32, 8


class Clock:
    """Sums the time spent in the wrapped methods of each class, without the wrapped calls inside them."""

    def __init__(self) -> None:
        self.spent: dict[type, float] = {}
        self._inner: list[float] = []

    def wrap(self, cls: type, name: str) -> None:
        method: Callable[..., Any] = cls.__dict__[name]

        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            started = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - started
                self.spent[cls] = self.spent.get(cls, 0.0) + elapsed - self._inner.pop()
                if self._inner:
                    self._inner[-1] += elapsed

        setattr(cls, name, timed)


def make_trainer(cls: type, config: type) -> Any:
    model, tokenizer = policy.load_policy(str(policy.embedded_policy()))
    task = get_task("thinking-sums")
    problems = task.problems("train", PROMPTS * PAIRS, 0)
    rows = [{"prompt": problem.prompt, "problem": i} for i, problem in enumerate(problems)]

    def reward(completions: list[str], problem: list[int], **_: Any) -> list[float | None]:
        return [task.score(problems[i], text) for i, text in zip(problem, completions, strict=True)]

    args = config(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
        per_device_train_batch_size=PROMPTS * COMPLETIONS, num_generations=COMPLETIONS, max_completion_length=14,
    )  # fmt: skip
    trainer = cls(model, reward, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def step(trainer: Any, rows: list[dict[str, Any]], seed: int) -> float:
    torch.manual_seed(seed)
    started = time.perf_counter()
    trainer.training_step(trainer.model, rows, None)
    elapsed = time.perf_counter() - started
    trainer.model.zero_grad()
    return elapsed


def main() -> None:
    transformers_logging.disable_progress_bar()
    plain = make_trainer(GRPOTrainer, GRPOConfig)
    ours = make_trainer(LambdaGRPOTrainer, LambdaGRPOConfig)
    clock = Clock()
    for name in set(vars(LambdaGRPOTrainer)) & set(vars(GRPOTrainer)) - {"__init__", "__doc__", "__module__"}:
        if callable(vars(GRPOTrainer)[name]):
            clock.wrap(GRPOTrainer, name)
            clock.wrap(LambdaGRPOTrainer, name)
    data = ours.train_dataset
    plain_s, ours_s, inside_s = [], [], []
    for pair in range(-3, PAIRS):  # three pairs to warm up
        rows = [data[(pair % PAIRS) * PROMPTS + i // COMPLETIONS] for i in range(PROMPTS * COMPLETIONS)]
        order = [(plain, plain_s), (ours, ours_s)]
        random.Random(pair).shuffle(order)
        before = clock.spent.get(LambdaGRPOTrainer, 0.0)
        for trainer, times in order:
            times.append(step(trainer, rows, pair + 3))
        inside_s.append(clock.spent[LambdaGRPOTrainer] - before)
    plain_s, ours_s, inside_s = plain_s[3:], ours_s[3:], inside_s[3:]
    base = statistics.median(plain_s)
    paired = sorted(b - a for a, b in zip(plain_s, ours_s, strict=True))
    inside = statistics.median(inside_s)
    quarter = len(paired) // 4
    print(f"{PROMPTS} prompts × {COMPLETIONS} completions, {PAIRS} pairs of steps, medians")
    print(f"TRL's step             {1e3 * base:8.2f} ms")
    print(f"inside: our lines      {1e3 * inside:8.2f} ms  {inside / base:7.2%} of the step")
    print(
        f"paired: ours - TRL's   {1e3 * statistics.median(paired):8.2f} ms  "
        f"{statistics.median(paired) / base:7.2%} of the step "
        f"(quartiles {1e3 * paired[quarter]:.2f} to {1e3 * paired[-quarter]:.2f} ms)"
    )


if __name__ == "__main__":
    main()
