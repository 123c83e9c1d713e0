"""Run a model over the unique tokens of process trees: `pack` or `join` them, then `tree_logps`.

This is all that is public of tree packing. A trainer with padded rows uses `rows.pack_rows`.
"""

from lambda_grpo.packing.forward import tree_logps, tree_logps_and_entropies
from lambda_grpo.packing.layout import PackedTree, join, pack, pack_whole

__all__ = ["PackedTree", "join", "pack", "pack_whole", "tree_logps", "tree_logps_and_entropies"]
