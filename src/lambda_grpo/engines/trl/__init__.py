"""λ-GRPO on TRL: swap `GRPOTrainer` and `GRPOConfig` for these two names and keep the rest."""

from lambda_grpo.engines.trl.config import LambdaGRPOConfig
from lambda_grpo.engines.trl.head_kernels import scores_by_trl
from lambda_grpo.engines.trl.trainer import LambdaGRPOTrainer
from lambda_grpo.packing.head import register_kernels

__all__ = ["LambdaGRPOConfig", "LambdaGRPOTrainer"]

register_kernels(scores_by_trl)
