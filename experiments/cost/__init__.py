"""The cost of the weights: see README.md."""
