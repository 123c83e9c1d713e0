"""One run: a policy trained with one credit on one task, its curve, and what the credit changed."""

import math
import tempfile
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback

from experiments.common.arms import credit_of
from experiments.common.trainer_config import trainer_config
from experiments.curves.run import Curve
from lambda_grpo import policy
from lambda_grpo.credit import get_credit
from lambda_grpo.effect.gradients import Passes, compare_gradients
from lambda_grpo.engines.trl import LambdaGRPOConfig, LambdaGRPOTrainer
from lambda_grpo.engines.trl.ending import end_completions_at
from lambda_grpo.evaluating.completions import Sampling, complete, encode
from lambda_grpo.report.analysis import analyse
from lambda_grpo.rollouts import RolloutReader
from lambda_grpo.tasks import get_task
from lambda_grpo.tasks.asking import Asked, PromptFormat
from lambda_grpo.tasks.task import score
from lambda_grpo.training import asking_settings, splits
from lambda_grpo.training import train as training

OVERLAP = ("path_depth", "intermediate_proportion", "shared_tokens", "push_removed")
"""Of each step's rollouts, whatever the credit: push_removed is Σ|a|(1 - 1/|λ|) / Σ|a|."""


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class SampledCurve(Curve):
    """Validates with one sampled completion per problem, always with the same random numbers."""

    def validate(self, step: int) -> None:
        ask = partial(encode, self.tokenizer, chat_template_kwargs={})
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            self.model.eval()
            texts, _ = complete(
                self.model,
                self.tokenizer,
                [ask(problem.prompt) for problem in self.problems],
                self.sampling,
                sample=True,
                end_tokens=getattr(self.task, "end_tokens", ()),
            )
            self.model.train()
        rewards = [score(self.task, p, text) or 0.0 for p, text in zip(self.problems, texts, strict=True)]
        right = sum(reward >= 1 for reward in rewards) / len(rewards)
        point = {"accuracy": round(right, 4), "reward": round(sum(rewards) / len(rewards), 4)}
        self.points.append({"steps": step, **point, "seconds": round(self.seconds, 2)})


def train(
    settings: Mapping[str, Any], model: str, task: str, credit: str, learning_rate: float, seed: int
) -> dict[str, Any]:
    """Train one policy; what a line of runs.jsonl holds beside the identity."""
    with tempfile.TemporaryDirectory() as folder:
        found = _curve(settings, _config(settings, credit, learning_rate, seed, folder), model, task)
        effect = _effect(folder, model, credit, settings["temperature"])
        return found | _overlap(folder) | effect | {"device": DEVICE}


def _curve(settings: Mapping[str, Any], config: LambdaGRPOConfig, model: str, task: str) -> dict[str, Any]:
    """Validation accuracy, reward and processor seconds of training, by step."""
    start, tokenizer = policy.load_policy(model, dtype=torch.float32)
    asked = Asked(get_task(task), PromptFormat(), tokenizer)
    sizes = splits.Sizes(settings["prompts"] * settings["steps"], settings["validation_problems"], 1)
    problems = splits.draw(asked, sizes, config.seed)
    trainer = LambdaGRPOTrainer(
        start,
        training.reward_function(asked, problems.train),
        asking_settings.for_trl(config, start),
        train_dataset=Dataset.from_list(training.rows(problems.train)),
        processing_class=tokenizer,
    )
    end_completions_at(trainer, asked.end_tokens)
    sampling = Sampling(settings["max_completion_length"], temperature=settings["temperature"])
    curve = SampledCurve(start, tokenizer, asked, problems.validation, sampling, settings["validate_every"])
    trainer.add_callback(curve)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {name: [point[name] for point in curve.points] for name in curve.points[0]}


def _config(
    settings: Mapping[str, Any], arm: str, learning_rate: float, seed: int, folder: str
) -> LambdaGRPOConfig:
    return trainer_config(
        folder,
        arm,
        seed,
        settings["prompts"],
        settings["num_generations"],
        max_steps=settings["steps"],
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        max_completion_length=settings["max_completion_length"],
        temperature=settings["temperature"],
        tree_packing="on",
        use_cpu=DEVICE == "cpu",
        save_rollouts=True,
    )


def _overlap(folder: str) -> dict[str, Any]:
    """The overlap of each training step, as lists; None where a step pushes nothing."""
    steps = analyse(RolloutReader([folder]), keep_nodes=False).steps()
    return {name: [_rounded(value) for value in steps[name]] for name in (*OVERLAP, "length")}


def _effect(folder: str, model: str, arm: str, temperature: float) -> dict[str, Any]:
    """The credit's gradient beside GRPO's on the first batch that pushes, of the policy at the start.

    Batches before it, whose rewards are equal in each group, have changed no weight.
    """
    name, parameters = credit_of(arm)
    pushing = [group for group in RolloutReader([folder]) if group.advantages.any()]
    if name == "grpo" or not pushing:
        return {"cosine": None, "norm_ratio": None}
    first = [group for group in pushing if group.step == min(each.step for each in pushing)]
    start, _ = policy.load_policy(model, dtype=torch.float32)
    passes = Passes(partial(get_credit(name), **parameters), temperature=temperature, tokens=1024)
    whole, *_ = compare_gradients(start.eval().to(DEVICE), first, passes)
    return {"cosine": _rounded(whole.cosine), "norm_ratio": _rounded(whole.norm_ratio)}


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)
