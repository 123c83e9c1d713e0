"""The share of a training step that λ costs: TRL's trainer and ours, step by step.

Two settings: the demo's, half a million parameters and very short completions, where nothing could weigh
more; and a random Qwen2 of 7.6 million parameters with completions of 32 tokens, still small as policies go.

Two figures of processor time, with tree packing off, which would make our steps shorter. *Inside*: the time
spent in our own lines within a step (trees, credit, measures, weighted loss), TRL's taken off; the gradient's
one multiplication runs in the backward and is not in it. *Paired*: the difference of two steps on the same
completions, one of each trainer, taken in turns; it holds everything, the machine's noise included.
"""

import functools
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging

from lambda_grpo import console, policy
from lambda_grpo.engines import trl as engine
from lambda_grpo.tasks import get_task
from lambda_grpo.tasks.thinking_sums import CHARACTERS

COMPLETIONS = 8
WARM_UP = 3  # pairs
OURS: type = engine.LambdaGRPOTrainer
# TRL's own, which only engines/ may import, and the classes of ours that lie above it.
PLAIN: type = next(cls for cls in OURS.__mro__ if cls.__module__.startswith("trl."))
CHAIN = OURS.__mro__[: OURS.__mro__.index(PLAIN)]
PLAIN_CONFIG: type = next(cls for cls in engine.LambdaGRPOConfig.__mro__ if cls.__module__.startswith("trl."))


@dataclass(frozen=True)
class StepSetting:
    """What is trained, and for how many pairs of steps."""

    name: str
    prompts: int
    max_completion_length: int
    pairs: int
    load: Callable[[], tuple[Any, Any]]


@dataclass(frozen=True)
class Share:
    """Medians over the pairs, in seconds: TRL's step, our own lines, and the quartiles of the difference."""

    setting: StepSetting
    step: float
    inside: float
    paired: tuple[float, float, float]

    def __str__(self) -> str:
        low, paired, high = self.paired
        setting = self.setting
        return (
            f"{setting.name}: {setting.prompts} prompts × {COMPLETIONS} completions, {setting.pairs} pairs, "
            f"medians\n"
            f"  TRL's step             {1e3 * self.step:8.2f} ms\n"
            f"  inside: our lines      {1e3 * self.inside:8.2f} ms  {self.inside / self.step:7.2%} of it\n"
            f"  paired: ours - TRL's   {1e3 * paired:8.2f} ms  {paired / self.step:7.2%} of it "
            f"(quartiles {1e3 * low:.2f} to {1e3 * high:.2f} ms)"
        )


class _Clock:
    """Sums the time spent in the wrapped methods of each class, without the wrapped calls inside them."""

    def __init__(self) -> None:
        self.spent: dict[type, float] = {}
        self._inner: list[float] = []
        self._plain: list[tuple[type, str, Any]] = []

    def __enter__(self) -> "_Clock":
        for name, method in list(vars(PLAIN).items()):
            ours = [cls for cls in CHAIN if name in vars(cls)]
            if callable(method) and ours and name != "__init__":
                for cls in (PLAIN, *ours):
                    self._wrap(cls, name)
        return self

    def inside(self) -> float:
        """Seconds in our own methods so far."""
        return sum(self.spent.get(cls, 0.0) for cls in CHAIN)

    def __exit__(self, *_: object) -> None:
        for cls, name, method in self._plain:
            setattr(cls, name, method)

    def _wrap(self, cls: type, name: str) -> None:
        method: Callable[..., Any] = cls.__dict__[name]
        self._plain.append((cls, name, method))

        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            started = time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                elapsed = time.process_time() - started
                self.spent[cls] = self.spent.get(cls, 0.0) + elapsed - self._inner.pop()
                if self._inner:
                    self._inner[-1] += elapsed

        setattr(cls, name, timed)


def embedded() -> tuple[Any, Any]:
    """The demo's policy."""
    return policy.load_policy(str(console.embedded_policy()))


def larger() -> tuple[Any, Any]:
    """A random Qwen2 of 7.6 million parameters."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=8192, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, bos_token_id=None,
    )  # fmt: skip
    tokenizer = policy.character_tokenizer(CHARACTERS)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    return Qwen2ForCausalLM(config), tokenizer


def settings(demo_pairs: int, larger_pairs: int) -> list[StepSetting]:
    """The two settings; one with 0 pairs is left out."""
    both = [
        StepSetting("the demo's policy", 32, 14, demo_pairs, embedded),
        StepSetting("7.6 million parameters, 32 tokens", 4, 32, larger_pairs, larger),
    ]
    return [setting for setting in both if setting.pairs]


def measure(setting: StepSetting, shown: Callable[[int, int], None] | None = None) -> Share:
    """Train both for a few steps on the same completions, in random turns."""
    transformers_logging.disable_progress_bar()
    plain, ours = _trainer(PLAIN, setting), _trainer(OURS, setting)
    data = ours.train_dataset
    times: dict[type, list[float]] = {PLAIN: [], OURS: []}
    inside = []
    with _Clock() as clock:
        for pair in range(setting.pairs + WARM_UP):
            first = pair % setting.pairs * setting.prompts
            rows = [data[first + i // COMPLETIONS] for i in range(setting.prompts * COMPLETIONS)]
            turns = [(plain, PLAIN), (ours, OURS)]
            random.Random(pair).shuffle(turns)
            before = clock.inside()
            for trainer, cls in turns:
                times[cls].append(_step(trainer, rows, pair))
            inside.append(clock.inside() - before)
            if shown:
                shown(pair + 1, setting.pairs + WARM_UP)
    differences = [b - a for a, b in zip(times[PLAIN], times[OURS], strict=True)][WARM_UP:]
    low, middle, high = statistics.quantiles(differences, n=4)
    step = statistics.median(times[PLAIN][WARM_UP:])
    return Share(setting, step, statistics.median(inside[WARM_UP:]), (low, middle, high))


def _trainer(cls: type, setting: StepSetting) -> Any:
    model, tokenizer = setting.load()
    task = get_task("thinking-sums")
    problems = task.problems("train", setting.prompts * setting.pairs, 0)
    rows = [{"prompt": problem.prompt, "problem": i} for i, problem in enumerate(problems)]

    def reward(completions: list[str], problem: list[int], **_: Any) -> list[float | None]:
        return [task.score(problems[i], text) for i, text in zip(problem, completions, strict=True)]

    config = (
        PLAIN_CONFIG
        if cls is PLAIN
        else partial(engine.LambdaGRPOConfig, tree_packing="off", sampler="generate")
    )
    args: Any = config(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        per_device_train_batch_size=setting.prompts * COMPLETIONS,
        num_generations=COMPLETIONS,
        max_completion_length=setting.max_completion_length,
    )
    trainer = cls(model, reward, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def _step(trainer: Any, rows: list[dict[str, Any]], seed: int) -> float:
    torch.manual_seed(seed)
    started = time.process_time()
    trainer.training_step(trainer.model, rows, None)
    elapsed = time.process_time() - started
    trainer.model.zero_grad()
    return elapsed
