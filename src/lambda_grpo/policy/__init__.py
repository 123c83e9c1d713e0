"""The policy to train: the embedded one, SmolLM2-135M, or any local folder, GGUF file or Hub id."""

from lambda_grpo.policy.embedded import EMBEDDED, character_tokenizer, embedded_policy
from lambda_grpo.policy.load import load_policy, load_tokenizer, model_folder, not_loaded
from lambda_grpo.policy.low_rank import LowRank, adapters
from lambda_grpo.policy.smollm2 import SMOLLM2, smollm2_policy

__all__ = [
    "EMBEDDED",
    "SMOLLM2",
    "LowRank",
    "adapters",
    "character_tokenizer",
    "embedded_policy",
    "load_policy",
    "load_tokenizer",
    "model_folder",
    "not_loaded",
    "smollm2_policy",
]
