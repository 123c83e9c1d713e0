"""curves: validation accuracy during training, credit beside credit, over the same seeds.

Every run starts from the same policy; the seed draws problems and completions.

runs.jsonl     one line per run: validation accuracy, reward and processor seconds of training, by step; an
               experiment that was stopped goes on with `--output` and the same folder
results.json   peak, step of the peak, mean over the curve, end, with intervals; paired differences from grpo
curves.png     accuracy against steps and against seconds; differences of the peaks
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging

from experiments.common import resumable_runs
from experiments.common.trainer_config import trainer_config
from experiments.curves import curve_differences
from lambda_grpo import console, policy
from lambda_grpo.engines.trl import LambdaGRPOConfig, LambdaGRPOTrainer
from lambda_grpo.evaluating.evaluation import Sampling, answer
from lambda_grpo.tasks import Problem, Task, get_task
from lambda_grpo.training import splits
from lambda_grpo.training import train as training

RESUMES_FROM = resumable_runs.FILE


def run(settings: Mapping[str, Any], output: Path) -> dict[str, float]:
    """Train what is not in runs.jsonl yet; draw, print and write; the figures.

    Raises:
        InputError: an unknown task or credit, or runs.jsonl holds runs with other settings.
    """
    shared = {key: value for key, value in settings.items() if key not in ("tasks", "credits", "seeds")}
    names = ("seed", "task", "credit")
    plan = product(range(settings["seeds"]), settings["tasks"], settings["credits"])
    wanted = [dict(zip(names, which, strict=True)) for which in plan]
    transformers_logging.disable_progress_bar()
    model = settings["model"]
    if model == policy.EMBEDDED:
        model = str(console.embedded_policy())
    with console.progress("Runs") as shown:
        rows = resumable_runs.complete(
            output, wanted, shared, lambda i: train(shared, model, **wanted[i]), shown
        )
    compared = curve_differences.compare(rows)
    curve_differences.show(compared)
    curve_differences.draw(rows, compared, output / "curves.png")
    return curve_differences.flat(compared)


@dataclass
class Curve(TrainerCallback):
    """Validates every few steps; counts the processor seconds of the training steps alone."""

    model: Any
    tokenizer: Any
    task: Task
    problems: Sequence[Problem]
    sampling: Sampling
    every: int
    points: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    began: float = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.validate(0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds += time.process_time() - self.began
        if state.global_step % self.every == 0:
            self.validate(state.global_step)

    def validate(self, step: int) -> None:
        """Add a point: accuracy and mean reward of sampled completions, and the seconds so far."""
        found = answer(self.model, self.tokenizer, self.task, self.problems, self.sampling).measures()
        accuracy, reward = (float(found[name].mean()) for name in ("sampled_accuracy", "mean_reward"))
        self.points.append(
            {
                "steps": step,
                "accuracy": round(accuracy, 4),
                "reward": round(reward, 4),
                "seconds": round(self.seconds, 2),
            }
        )


def train(settings: Mapping[str, Any], model: str, task: str, credit: str, seed: int) -> dict[str, Any]:
    """One run: its curve, and the share of groups whose completions all earned the same."""
    scorer = get_task(task)
    steps, prompts = settings["steps"], settings["prompts"]
    sizes = splits.Sizes(prompts * steps, settings["validation_problems"], 1)
    problems = splits.draw(scorer, sizes, seed)
    with tempfile.TemporaryDirectory() as folder:
        start, tokenizer = policy.load_policy(model, dtype="float32")
        trainer = LambdaGRPOTrainer(
            start,
            training.reward_function(scorer, problems.train),
            _config(settings, credit, seed, folder),
            train_dataset=Dataset.from_list(training.rows(problems.train)),
            processing_class=tokenizer,
        )
        sampling = Sampling(
            settings["max_completion_length"],
            batch_size=settings["validation_problems"] * settings["validation_samples"],
            samples=settings["validation_samples"],
        )
        curve = Curve(start, tokenizer, scorer, problems.validation, sampling, settings["validate_every"])
        trainer.add_callback(curve)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    columns = {name: [point[name] for point in curve.points] for name in curve.points[0]}
    logged = [
        row["frac_reward_zero_std"] for row in trainer.state.log_history if "frac_reward_zero_std" in row
    ]
    return {**columns, "equal_groups": round(sum(logged) / len(logged), 4)}


def _config(settings: Mapping[str, Any], credit: str, seed: int, folder: str) -> LambdaGRPOConfig:
    return trainer_config(
        folder,
        credit,
        seed,
        settings["prompts"],
        settings["num_generations"],
        max_steps=settings["steps"],
        learning_rate=settings["learning_rate"],
        adam_beta2=0.95,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=settings["warmup_steps"],
        max_completion_length=settings["max_completion_length"],
        save_rollouts=False,
    )
