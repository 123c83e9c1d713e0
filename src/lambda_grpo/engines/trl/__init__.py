"""λ-GRPO on TRL: swap `GRPOTrainer` and `GRPOConfig` for these two names and keep the rest."""

from lambda_grpo.engines.trl import head_kernels  # noqa: F401: it registers TRL's kernels
from lambda_grpo.engines.trl.config import LambdaGRPOConfig
from lambda_grpo.engines.trl.trainer import LambdaGRPOTrainer

__all__ = ["LambdaGRPOConfig", "LambdaGRPOTrainer"]
