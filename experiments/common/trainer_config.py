"""The trainer's settings that all training runs of the experiments share."""

from typing import Any

from experiments.common.arms import credit_of
from lambda_grpo.engines.trl import LambdaGRPOConfig


def trainer_config(
    folder: str, arm: str, seed: int, prompts: int, completions: int, use_cpu: bool = True, **settings: Any
) -> LambdaGRPOConfig:
    """One micro-batch a step, in full precision, with no output beside the trainer's own log.

    Args:
        folder: where rollouts go, if the settings ask for them.
        arm: a credit, maybe with parameters.
        seed: of problems and completions.
        prompts: of a step.
        completions: of each prompt.
        use_cpu: False takes a GPU where there is one.
        settings: the others of `LambdaGRPOConfig`.
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
        use_cpu=use_cpu,
        bf16=False,
        **settings,
    )
