"""The results that `lambda-grpo reproduce` can run again: name → one line. Imports nothing heavy."""
