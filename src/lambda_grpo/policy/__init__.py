"""The policy to train: the embedded one, or any local folder or Hub id."""

from lambda_grpo.policy.embedded import EMBEDDED, character_tokenizer, embedded_policy
from lambda_grpo.policy.load import load_policy, load_tokenizer
from lambda_grpo.policy.low_rank import LowRank, adapters

__all__ = [
    "EMBEDDED",
    "LowRank",
    "adapters",
    "character_tokenizer",
    "embedded_policy",
    "load_policy",
    "load_tokenizer",
]
