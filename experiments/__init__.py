"""The results that can be run again: `python -m experiments NAME` from the root of a checkout.

A folder NAME with a file run.py is an experiment. Beside it lie README.md, config.yaml (every key is a flag),
expected.json and results/. `run.run(settings, output)` returns the figures. common/ holds what they share.
"""
