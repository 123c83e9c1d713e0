"""λ-GRPO on verl. verl imports this package through the entry-point group `verl.plugins`.

Without verl, only `check` can be used here: it says what is missing.
"""

from importlib.util import find_spec

if find_spec("verl") is not None:
    from lambda_grpo.engines.verl.trainer import PRODUCT_IS_EXACT, LambdaSyncTrainer, weighted_ppo_loss

    __all__ = ["PRODUCT_IS_EXACT", "LambdaSyncTrainer", "weighted_ppo_loss"]
