"""Training curves of several credits: see README.md."""
