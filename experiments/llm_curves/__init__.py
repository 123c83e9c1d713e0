"""Training curves of a real language model: see README.md."""
