"""How good a policy is at a task: accuracy with 95% intervals, greedy and sampled."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from lambda_grpo.tasks import Problem, Task

Progress = Callable[[int, int], None]
"""Called as (completions done, completions to do)."""


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn for an evaluation."""

    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    batch_size: int = 128
    seed: int = 0


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Evaluation:
    """What one policy scored on one set of problems.

    Attributes:
        sampled_accuracy, greedy_accuracy: mean reward; resampled over problems for the interval.
        mean_length: mean tokens of a sampled completion, its end-of-sequence token included.
        traits: the task's own measures, means over sampled completions.
    """

    sampled_accuracy: Estimate
    greedy_accuracy: Estimate
    mean_length: float
    traits: Mapping[str, float]


def bootstrap(values: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean of `values` (n,) with the percentile bootstrap's 95% interval.

    >>> bootstrap([1.0, 1.0])
    Estimate(mean=1.0, low=1.0, high=1.0)
    """
    x = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = np.array([x[rng.integers(0, len(x), len(x))].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(x.mean()), float(low), float(high))


def evaluate(
    model: Any,
    tokenizer: Any,
    task: Task,
    problems: Sequence[Problem],
    sampling: Sampling,
    progress: Progress | None = None,
) -> Evaluation:
    """Answer every problem twice, greedily and sampled. Leaves torch's random state as it was."""
    total = 2 * len(problems)
    batches = [problems[i : i + sampling.batch_size] for i in range(0, len(problems), sampling.batch_size)]
    scores: dict[bool, list[float]] = {True: [], False: []}
    lengths: list[int] = []
    traits: list[Mapping[str, float]] = []
    with _evaluating(model, sampling.seed):
        for sample in scores:
            for batch in batches:
                prompts = [problem.prompt for problem in batch]
                texts, counts = complete(model, tokenizer, prompts, sampling, sample=sample)
                rewards = [task.score(p, text) for p, text in zip(batch, texts, strict=True)]
                scores[sample] += [0.0 if reward is None else reward for reward in rewards]
                if sample:
                    lengths += counts
                    traits += [task.traits(text) for text in texts]
                if progress:
                    progress(len(scores[True]) + len(scores[False]), total)
    return Evaluation(
        sampled_accuracy=bootstrap(scores[True]),
        greedy_accuracy=bootstrap(scores[False]),
        mean_length=float(np.mean(lengths)),
        traits={name: float(np.mean([t[name] for t in traits])) for name in traits[0]},
    )


@contextmanager
def _evaluating(model: Any, seed: int) -> Iterator[None]:
    training = model.training
    model.eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            model.train(training)


def complete(
    model: Any, tokenizer: Any, prompts: Sequence[Any], sampling: Sampling, *, sample: bool
) -> tuple[list[str], list[int]]:
    """One completion per prompt (text or chat messages): the texts, and their lengths in tokens."""
    if isinstance(prompts[0], str):
        inputs = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
    else:
        inputs = tokenizer.apply_chat_template(
            list(prompts), add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt", padding=True, padding_side="left",
        )  # fmt: skip
    manner = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    output = model.generate(
        **inputs.to(model.device),
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sample,
        pad_token_id=tokenizer.pad_token_id,
        **(manner if sample else {}),
    )
    ids = output[:, inputs["input_ids"].shape[1] :]
    is_end = ids == tokenizer.eos_token_id
    ends = torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1) + 1, ids.shape[1])
    return tokenizer.batch_decode(ids, skip_special_tokens=True), ends.tolist()
