"""How much completions share during training: see README.md."""
