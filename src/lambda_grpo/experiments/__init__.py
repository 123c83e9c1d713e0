"""The results that `lambda-grpo reproduce` can run again. Imports nothing heavy.

Each is a module here with a function `run(settings, output) -> figures`, and a folder experiments/NAME of
the repository (in a wheel: `folders/NAME` beside this file) with README.md, config.yaml, expected.json and
results/.
"""

EXPERIMENTS = {
    "binary-tree": "the paper's toy tree: how often each credit finds the target (about 20 minutes)",
    "overlap": "how much completions share during training, in groups of 6 and of 36 (about 10 minutes)",
    "cost": "seconds per token of λ-GRPO's weights, and their share of a training step (about 3 minutes)",
    "curves": "validation accuracy during training on three tasks, credit beside credit (about 40 minutes)",
}
