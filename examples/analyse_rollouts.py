"""The hidden process reward model of some rollouts, as tables for a notebook.

    python examples/analyse_rollouts.py [PATH…]

Without a path it looks at four made-up completions.
"""

import json
import sys
import tempfile
from pathlib import Path

from lambda_grpo.report.analysis import analyse
from lambda_grpo.rollouts import RolloutReader

COMPLETIONS = [
    ("Add them: 7+2 = 9, so 22.", 1.0),
    ("Add them: 7+2 = 9, so 21.", 0.0),
    ("Add them: 7+2 = 8, so 21.", 0.0),
    ("22.", 1.0),
]


def made_up(folder: Path) -> Path:
    path = folder / "rollouts.jsonl"
    rows = [
        {"group": "sums", "prompt": "7+2+13=", "completion": text, "reward": r} for text, r in COMPLETIONS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def main(paths: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        analysis = analyse(RolloutReader(paths or [made_up(Path(folder))]))

    # Each table is a mapping of columns: pandas.DataFrame(analysis.groups) in a notebook.
    print("per run:")
    for name, values in analysis.runs().items():
        print(f"  {name:24}", *values)
    print("process steps of the first group:")
    nodes = analysis.nodes
    first = (nodes["group"] == nodes["group"][0]) & (nodes["step"] == nodes["step"][0])
    for name in ("parent", "start", "end", "size", "reward", "advantage"):
        print(f"  {name:10}", *(f"{value:7.3g}" for value in nodes[name][first & (nodes["node"] < 12)]))


if __name__ == "__main__":
    main(sys.argv[1:])
