"""Chains against forked completions: see README.md."""
