"""The share of a training step that λ costs; what is measured, and how: `lambda_grpo.experiments.step_share`.

python benchmarks/overhead.py
"""

from lambda_grpo.experiments import step_share

if __name__ == "__main__":
    for setting in step_share.settings():
        print(step_share.measure(setting), flush=True)
