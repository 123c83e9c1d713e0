"""How fast rollouts are analysed and reported, and in how much memory.

    python benchmarks/report.py                      # 100,000 completions of 500 tokens; about two minutes
    python benchmarks/report.py --completions 4000

Completions come in groups of 8 that branch, in a run folder as training writes it. Times are those of one
core; the report runs in a process of its own, whose peak memory is shown.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lambda_grpo import ProcessTree

GROUP = 8
PER_STEP = 1000
WORDS = np.array([f" w{i}" for i in range(20_000)])

CHILD = """
import json, resource, sys, time
begin = time.perf_counter()
from lambda_grpo.report import write_report
started = time.perf_counter() - begin
written = write_report([sys.argv[1]], sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
whole = time.perf_counter() - begin
print(json.dumps([started, whole, peak, written.groups, written.shown]))
"""


def branching(rng: np.random.Generator, rows: int, tokens: int) -> np.ndarray:
    """(rows, tokens) ids; in each group every completion follows an earlier one for a while."""
    ids = rng.zipf(1.3, (rows, tokens)) % len(WORDS)
    for row in range(rows):
        if row % GROUP:
            source = row - row % GROUP + int(rng.integers(row % GROUP))
            kept = min(int(rng.geometric(1 / 60)), tokens)
            ids[row, :kept] = ids[source, :kept]
    return ids.astype(np.int32)


def write_run(folder: Path, completions: int, tokens: int) -> float:
    """A run folder; returns its size in GB of tokens and text before compression."""
    rng = np.random.default_rng(0)
    (folder / "rollouts").mkdir(parents=True)
    size = 0
    for step, first in enumerate(range(0, completions, PER_STEP)):
        rows = min(PER_STEP, completions - first)
        ids = branching(rng, rows, tokens)
        texts = ["".join(WORDS[row]) for row in ids]
        size += ids.nbytes + sum(map(len, texts))
        table = pa.table(
            {
                "step": np.full(rows, step),
                "group": np.arange(rows) // GROUP,
                "prompt": [f"Problem {row // GROUP} of step {step}" for row in range(rows)],
                "completion": texts,
                "token_ids": pa.array(list(ids), pa.list_(pa.int32())),
                "reward": rng.integers(0, 2, rows).astype(float),
            }
        )
        pq.write_table(table, folder / "rollouts" / f"step-{step:06d}-rank-0.parquet", compression="zstd")
    return size / 1e9


def seconds(work: Callable[[], Any]) -> float:
    """The shortest of three runs."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def tree_rate(completions: int, tokens: int) -> float:
    """Tokens per second of `build_many`, from integer arrays, in batches of two million tokens."""
    rng = np.random.default_rng(1)
    rows = min(completions, 2**21 // tokens // GROUP * GROUP)
    batch = list(branching(rng, rows, tokens))
    groups = (np.arange(rows) // GROUP).tolist()
    return rows * tokens / seconds(lambda: ProcessTree.build_many(batch, groups))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--completions", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=500)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_run(folder / "run", args.completions, args.tokens)
        html = folder / "report.html"
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(folder / "run"), str(html)],
            check=True,
            capture_output=True,
            text=True,
        )
        started, whole, peak, groups, shown = json.loads(child.stdout)
        megabytes = html.stat().st_size / 1e6
    rate = tree_rate(args.completions, args.tokens) / 1e6
    million = args.completions * args.tokens / 1e6
    print(f"rollouts             {args.completions:,} completions × {args.tokens} tokens, {size:.2f} GB")
    print(f"trees (build_many)   {rate:.0f} M tokens/s (floor: 20)")
    print(f"import               {started:.2f} s (floor: 2)")
    print(f"whole report         {whole:.1f} s, {million / whole:.1f} M tokens/s (floor: 60 s)")
    print(f"peak memory          {peak / 1e9:.2f} GB (floor: 2)")
    print(f"page                 {megabytes:.1f} MB, {shown} of {groups:,} groups in full")


if __name__ == "__main__":
    main()
