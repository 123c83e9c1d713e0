"""λ-GRPO: exact process trees and step-wise credit for GRPO training of language models.

The method of Sullivan & Koller, "GRPO is Secretly a Process Reward Model" (arXiv 2509.21154).
"""

from lambda_grpo import credit, measures
from lambda_grpo.credit import TokenCredit
from lambda_grpo.errors import InputError, LambdaGRPOError
from lambda_grpo.tree import ProcessTree

__all__ = ["InputError", "LambdaGRPOError", "ProcessTree", "TokenCredit", "credit", "measures"]
__version__ = "0.1.0"
