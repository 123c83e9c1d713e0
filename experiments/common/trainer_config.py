"""The trainer's settings that all training runs of the experiments share."""

from typing import Any

from experiments.common.arms import credit_of
from lambda_grpo.engines.trl import LambdaGRPOConfig


def trainer_config(
    folder: str, arm: str, seed: int, prompts: int, completions: int, **settings: Any
) -> LambdaGRPOConfig:
    """One micro-batch a step, in full precision, with no output beside the trainer's own log.

    Args:
        folder: where rollouts go, if the settings ask for them.
        arm: a credit, maybe with parameters.
        seed: of problems and completions.
        prompts: of a step.
        completions: of each prompt.
        settings: the others of `LambdaGRPOConfig`; without `use_cpu` the run is on a CPU.
    """
    credit, parameters = credit_of(arm)
    return LambdaGRPOConfig(
        output_dir=folder,
        credit=credit,
        credit_kwargs=parameters,
        seed=seed,
        loss_type="dapo",
        per_device_train_batch_size=prompts * completions,
        num_generations=completions,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        bf16=False,
        **{"use_cpu": True, **settings},
    )
