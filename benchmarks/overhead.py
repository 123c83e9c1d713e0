"""The share of a training step that λ costs: TRL's trainer and ours, step by step.

Two settings: the demo's, half a million parameters and very short completions, where nothing could weigh more; and
a random Qwen2 of 7.6 million parameters with completions of 32 tokens, still small as policies go.

Two figures. *Inside*: the time spent in our own lines within a step (trees, credit, measures, weighted
loss), TRL's taken off; the gradient's one multiplication runs in the backward and is not in it. *Paired*:
the difference of two steps on the same completions, one of each trainer, taken in turns; it holds
everything, the machine's noise included. Tree packing, which makes steps faster, is off.

    python benchmarks/overhead.py
"""

import functools
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging
from trl import GRPOConfig, GRPOTrainer

from lambda_grpo import policy
from lambda_grpo.engines.trl import LambdaGRPOConfig, LambdaGRPOTrainer
from lambda_grpo.tasks import get_task
from lambda_grpo.tasks.thinking_sums import CHARACTERS

COMPLETIONS = 8
WARM_UP = 3  # pairs


@dataclass(frozen=True)
class Setting:
    """What is trained, and for how many pairs of steps."""

    name: str
    prompts: int
    max_completion_length: int
    pairs: int
    load: Callable[[], tuple[Any, Any]]


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


def embedded() -> tuple[Any, Any]:
    return policy.load_policy(str(policy.embedded_policy()))


def larger() -> tuple[Any, Any]:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=8192, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, bos_token_id=None,
    )  # fmt: skip
    tokenizer = policy.character_tokenizer(CHARACTERS)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    return Qwen2ForCausalLM(config), tokenizer


SETTINGS = (
    Setting("the demo's policy", 32, 14, 60, embedded),
    Setting("7.6 million parameters, 32 tokens", 4, 32, 9, larger),
)


def make_trainer(cls: type, config: type, setting: Setting) -> Any:
    model, tokenizer = setting.load()
    task = get_task("thinking-sums")
    problems = task.problems("train", setting.prompts * setting.pairs, 0)
    rows = [{"prompt": problem.prompt, "problem": i} for i, problem in enumerate(problems)]

    def reward(completions: list[str], problem: list[int], **_: Any) -> list[float | None]:
        return [task.score(problems[i], text) for i, text in zip(problem, completions, strict=True)]

    args = config(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        per_device_train_batch_size=setting.prompts * COMPLETIONS,
        num_generations=COMPLETIONS,
        max_completion_length=setting.max_completion_length,
        **({"tree_packing": "off"} if config is LambdaGRPOConfig else {}),  # λ alone
    )
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


def measure(setting: Setting, clock: Clock) -> None:
    plain = make_trainer(GRPOTrainer, GRPOConfig, setting)
    ours = make_trainer(LambdaGRPOTrainer, LambdaGRPOConfig, setting)
    data = ours.train_dataset
    plain_s, ours_s, inside_s = [], [], []
    for pair in range(setting.pairs + WARM_UP):
        first = pair % setting.pairs * setting.prompts
        rows = [data[first + i // COMPLETIONS] for i in range(setting.prompts * COMPLETIONS)]
        order = [(plain, plain_s), (ours, ours_s)]
        random.Random(pair).shuffle(order)
        before = clock.spent.get(LambdaGRPOTrainer, 0.0)
        for trainer, times in order:
            times.append(step(trainer, rows, pair))
        inside_s.append(clock.spent[LambdaGRPOTrainer] - before)
    differences = [b - a for a, b in zip(plain_s, ours_s, strict=True)][WARM_UP:]
    low, paired, high = statistics.quantiles(differences, n=4)
    base, inside = statistics.median(plain_s[WARM_UP:]), statistics.median(inside_s[WARM_UP:])
    print(
        f"{setting.name}: {setting.prompts} prompts × {COMPLETIONS} completions, {setting.pairs} pairs, medians"
    )
    print(f"  TRL's step             {1e3 * base:8.2f} ms")
    print(f"  inside: our lines      {1e3 * inside:8.2f} ms  {inside / base:7.2%} of the step")
    print(
        f"  paired: ours - TRL's   {1e3 * paired:8.2f} ms  {paired / base:7.2%} of the step "
        f"(quartiles {1e3 * low:.2f} to {1e3 * high:.2f} ms)",
        flush=True,
    )


def main() -> None:
    transformers_logging.disable_progress_bar()
    clock = Clock()
    for name in set(vars(LambdaGRPOTrainer)) & set(vars(GRPOTrainer)) - {"__init__", "__doc__", "__module__"}:
        if callable(vars(GRPOTrainer)[name]):
            clock.wrap(GRPOTrainer, name)
            clock.wrap(LambdaGRPOTrainer, name)
    for setting in SETTINGS:
        measure(setting, clock)


if __name__ == "__main__":
    main()
