"""The share of a training step that λ costs; what is measured, and how: `step_share.py`.

python benchmarks/overhead.py [--quick]
"""

import argparse

import step_share

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    sizes = (15, 3) if parser.parse_args().quick else (60, 9)
    for setting in step_share.settings(*sizes):
        print(step_share.measure(setting), flush=True)
