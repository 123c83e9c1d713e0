"""How good a policy is at a task: it answers each problem once greedily and K times by sampling.

An answer is **right** if its reward is at least 1, as in `lambda-grpo report`. Accuracy and pass@k count
right answers; rewards other than 0 and 1 show in the mean reward. An answer that the task cannot score (None)
is counted and left out: it is neither right nor wrong. A problem counts in a mean over samples if one of them
was scored, and in pass@k if k of them were.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from lambda_grpo.errors import InputError, expect
from lambda_grpo.evaluating.completions import Sampling as Sampling
from lambda_grpo.evaluating.completions import complete, encode
from lambda_grpo.evaluating.intervals import Estimate, Floats, bootstrap, pass_at_k, ratio
from lambda_grpo.tasks import Problem, Task
from lambda_grpo.tasks.task import score

Progress = Callable[[int, int], None]
"""Called as (completions done, completions to do)."""

RIGHT_FROM = 1.0
"""The least reward of a right answer."""


@dataclass(frozen=True)
class Answers:
    """What one policy's answers to P problems were worth, K samples each.

    Attributes:
        sampled: (P, K) rewards, NaN where the task could not score.
        greedy: (P,) the same of the greedy answers.
        lengths: (P, K) tokens of the sampled completions, end-of-sequence token included.
        traits: the task's own measures, means over sampled completions.
    """

    sampled: Floats
    greedy: Floats
    lengths: Floats
    traits: Mapping[str, float]

    def measures(self, pass_at: Sequence[int] = ()) -> dict[str, Floats]:
        """Per problem (P,) each: accuracies, `pass@k` for each k of `pass_at`, mean reward, mean length."""
        tried, right = (~np.isnan(self.sampled)).sum(axis=1), (self.sampled >= RIGHT_FROM).sum(axis=1)
        return {
            "sampled_accuracy": ratio(right, tried),
            "greedy_accuracy": np.where(np.isnan(self.greedy), np.nan, self.greedy >= RIGHT_FROM),
            **{f"pass@{k}": pass_at_k(right, tried, k) for k in pass_at},
            "mean_reward": ratio(np.nansum(self.sampled, axis=1), tried),
            "mean_length": self.lengths.mean(axis=1),
        }


@dataclass(frozen=True)
class Evaluation:
    """What one policy scored on one set of problems, with intervals over problems.

    Attributes:
        sampled_accuracy: share of right answers among K samples, also called avg@K.
        greedy_accuracy: the same of the most likely answers.
        mean_length: mean tokens of a sampled completion, its end-of-sequence token included.
        traits: the task's own measures, means over sampled completions.
        pass_at: k → chance that one of k samples is right.
        mean_reward: of sampled completions; equal to `sampled_accuracy` if every reward is 0 or 1.
        samples: K.
        answers: completions, sampled and greedy.
        unscorable: how many of them the task could not score.
    """

    sampled_accuracy: Estimate
    greedy_accuracy: Estimate
    mean_length: float
    traits: Mapping[str, float]
    pass_at: Mapping[int, Estimate]
    mean_reward: Estimate
    samples: int
    answers: int
    unscorable: int


def usual_pass_at(samples: int) -> tuple[int, ...]:
    """The powers of two up to the number of samples, and that number; without 1, which is the accuracy.

    >>> usual_pass_at(1), usual_pass_at(4), usual_pass_at(6)
    ((), (2, 4), (2, 4, 6))
    """
    powers = {2**n for n in range(1, samples.bit_length()) if 2**n <= samples}
    return tuple(sorted(powers | ({samples} if samples > 1 else set())))


def check_pass_at(pass_at: Sequence[int], samples: int) -> None:
    """Refuse a k that `samples` cannot estimate without bias.

    Raises:
        InputError: a k below 1 or above `samples`.
    """
    for k in pass_at:
        expect(1 <= k <= samples, "pass_at", k, f"from 1 to the number of samples per problem, {samples}")


def summarise(answers: Answers, pass_at: Sequence[int] = ()) -> Evaluation:
    """Means over problems with 95% intervals."""
    check_pass_at(pass_at, answers.sampled.shape[1])
    means = {name: bootstrap(values) for name, values in answers.measures(pass_at).items()}
    return Evaluation(
        sampled_accuracy=means["sampled_accuracy"],
        greedy_accuracy=means["greedy_accuracy"],
        mean_length=means["mean_length"].mean,
        traits=answers.traits,
        pass_at={k: means[f"pass@{k}"] for k in pass_at},
        mean_reward=means["mean_reward"],
        samples=answers.sampled.shape[1],
        answers=answers.sampled.size + answers.greedy.size,
        unscorable=int(np.isnan(answers.sampled).sum() + np.isnan(answers.greedy).sum()),
    )


def differences(first: Answers, second: Answers, pass_at: Sequence[int] = ()) -> dict[str, Estimate]:
    """Second minus first by name of the measure, paired: both answered the same problems in the same order.

    A problem counts where both were scored.

    Raises:
        InputError: different numbers of problems.
    """
    if len(first.greedy) != len(second.greedy):
        raise InputError(
            f"a paired difference needs answers to the same problems: got {len(first.greedy)} and "
            f"{len(second.greedy)}"
        )
    before, after = first.measures(pass_at), second.measures(pass_at)
    return {name: bootstrap(after[name] - before[name]) for name in before}


def answer(
    model: Any,
    tokenizer: Any,
    task: Task,
    problems: Sequence[Problem],
    sampling: Sampling,
    progress: Progress | None = None,
) -> Answers:
    """Answer every problem, sampled and greedily, and score the answers.

    `task` is an `asking.Asked` where a chat template takes settings, or stop texts end a completion.
    The same seed and settings give the same answers. Leaves torch's random state and the model as they were.

    Raises:
        InputError: no problems; a prompt that cannot be encoded; a score that is no finite number or None.
    """
    if not problems:
        raise InputError("nothing to evaluate: got no problems, expected at least one")
    kwargs, ends = getattr(task, "chat_template_kwargs", {}), getattr(task, "end_tokens", ())
    prompts = [encode(tokenizer, problem.prompt, kwargs) for problem in problems]
    shape = (len(problems), sampling.samples)
    rewards: list[float] = []
    lengths: list[int] = []
    traits: dict[str, list[float]] = {}
    ask = partial(complete, model, tokenizer, sampling=sampling, end_tokens=ends)
    with _evaluating(model, sampling.seed):
        for sample in (True, False):
            for i, text, length in _replies(ask, prompts, sampling, sample):
                reward = score(task, problems[i], text)
                rewards.append(math.nan if reward is None else reward)
                if sample:
                    lengths.append(length)
                    for name, value in task.traits(text).items():
                        traits.setdefault(name, []).append(value)
                if progress:
                    progress(len(rewards), shape[0] * (shape[1] + 1))
    return Answers(
        sampled=np.array(rewards[: -shape[0]]).reshape(shape),
        greedy=np.array(rewards[-shape[0] :]),
        lengths=np.array(lengths, np.float64).reshape(shape),
        traits={name: float(np.mean(values)) for name, values in traits.items()},
    )


def _replies(
    ask: Callable[..., tuple[list[str], list[int]]],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    sample: bool,
) -> Iterator[tuple[int, str, int]]:
    """(Number of the prompt, text, tokens) of each completion: K in a row per prompt, or one if greedy."""
    rows = [i for i in range(len(prompts)) for _ in range(sampling.samples if sample else 1)]
    for start in range(0, len(rows), sampling.batch_size):
        batch = rows[start : start + sampling.batch_size]
        texts, lengths = ask(prompts=[prompts[i] for i in batch], sample=sample)
        yield from zip(batch, texts, lengths, strict=True)


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
