"""One training run of one arm: validation accuracy by step, by sampled tokens and by seconds."""

import tempfile
from itertools import accumulate
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback

from experiments.branching.setups import Arm, Setup
from experiments.common.trainer_config import trainer_config
from experiments.curves.run import Curve
from lambda_grpo import policy
from lambda_grpo.engines.trl import LambdaGRPOConfig, LambdaGRPOTrainer
from lambda_grpo.engines.trl.ending import end_completions_at
from lambda_grpo.evaluating.evaluation import Sampling
from lambda_grpo.tasks import get_task
from lambda_grpo.tasks.asking import Asked, PromptFormat
from lambda_grpo.training import asking_settings, splits
from lambda_grpo.training import train as training


def train(setup: Setup, arm: Arm, seed: int) -> dict[str, Any]:
    """Train; the curve, and by step the reward of the training completions.

    The problems depend on the seed alone, so all arms see the same ones in the same order.
    """
    model, tokenizer = policy.load_policy(setup.folder, dtype="float32")
    task = Asked(get_task(setup.task), PromptFormat(), tokenizer)
    sizes = splits.Sizes(setup.prompts * setup.steps, setup.validation_problems, 1)
    problems = splits.draw(task, sizes, seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = LambdaGRPOTrainer(
            model,
            training.reward_function(task, problems.train),
            asking_settings.for_trl(_config(setup, arm, seed, folder), model),
            train_dataset=Dataset.from_list(training.rows(problems.train)),
            processing_class=tokenizer,
        )
        end_completions_at(trainer, task.end_tokens)
        sampling = Sampling(
            setup.max_completion_length,
            temperature=setup.temperature,
            batch_size=256,
            samples=setup.validation_samples,
        )
        curve = Curve(model, tokenizer, task, problems.validation, sampling, setup.validate_every)
        trainer.add_callback(curve)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    logged = [row for row in trainer.state.log_history if "completions/mean_length" in row]
    columns = {name: [point[name] for point in curve.points] for name in curve.points[0]}
    return columns | _by_step(logged, curve, setup.prompts * setup.chains)


def _by_step(logged: list[dict[str, float]], curve: Curve, rows: int) -> dict[str, Any]:
    """What the trainer logged: sampled tokens up to each point of the curve, and before each step; rewards.

    Args:
        rows: completions of a step, if they do not fork; forked ones have their sampled tokens logged.
    """
    tokens = [step.get("tree/sampled_tokens", step["completions/mean_length"] * rows) for step in logged]
    drawn = list(accumulate(tokens, initial=0.0))
    equal = [step["frac_reward_zero_std"] for step in logged]
    return {
        "tokens": [round(drawn[int(point["steps"])]) for point in curve.points],
        "tokens_before": [round(before) for before in drawn[:-1]],
        "training_reward": [round(step["reward"], 4) for step in logged],
        "mean_length": round(sum(step["completions/mean_length"] for step in logged) / len(logged), 2),
        "equal_groups": round(sum(equal) / len(equal), 4),
    }


def _config(setup: Setup, arm: Arm, seed: int, folder: str) -> LambdaGRPOConfig:
    return trainer_config(
        folder,
        arm.credit,
        seed,
        setup.prompts,
        setup.slots if arm.forks else setup.chains,
        tree_packing="on",  # short runs: the trial of `auto` would be a good part of their seconds
        max_steps=setup.steps,
        learning_rate=setup.learning_rate,
        adam_beta2=0.95,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=setup.warmup_steps,
        max_completion_length=setup.max_completion_length,
        temperature=setup.temperature,
        save_rollouts=False,
        branch_depths=[setup.depth] if arm.forks else None,
        branch_factors=[setup.factor] if arm.forks else None,
    )
