"""Run a model over the unique tokens of process trees: `pack` or `join` them, then `tree_logps`.

This is the whole public face of tree packing. `rows.pack_rows` is where a trainer with padded rows plugs in.
"""

from lambda_grpo.packing.forward import tree_logps, tree_logps_and_entropies
from lambda_grpo.packing.layout import PackedTree, join, pack, pack_whole

__all__ = ["PackedTree", "join", "pack", "pack_whole", "tree_logps", "tree_logps_and_entropies"]
