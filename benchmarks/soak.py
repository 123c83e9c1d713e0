"""A long run of the demo: does memory, the time of a step, or the number of open files grow?

Runs `lambda-grpo train` in a process of its own, looks at it every few seconds while it trains, and fits a line to each
series after a warm-up of a tenth of the steps. Linux only.

    python benchmarks/soak.py [--steps 2000]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def watch(process: subprocess.Popen[bytes], log: Path, every: float) -> np.ndarray:
    """(n, 3) steps done (lines of `log`), resident MB and open files, until the process ends."""
    seen = []
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
            steps = log.read_bytes().count(b"\n") if log.exists() else 0
            seen.append((steps, resident / 1024, len(os.listdir(f"/proc/{process.pid}/fd"))))
        except (FileNotFoundError, ProcessLookupError, StopIteration):
            break
        time.sleep(every)
    return np.array(seen)


def describe(name: str, place: np.ndarray, values: np.ndarray) -> None:
    """First and last fifth, and the growth of a fitted line over the whole."""
    slope, start = np.polyfit(place, values, 1)
    fifth = max(len(values) // 5, 1)
    first, last = np.median(values[:fifth]), np.median(values[-fifth:])
    grown = slope * (place[-1] - place[0]) / (start + slope * place[0])
    print(
        f"{name:<22} first fifth {first:9.3f}  last fifth {last:9.3f}  ({last / first - 1:+.1%}); "
        f"fitted line {grown:+.1%}; {values.min():.3f} to {values.max():.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between looks")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lambda_grpo.cli", "train", "--max_steps", str(args.steps)]
        settings = ["--output_dir", f"{folder}/run", "--eval_problems", "64"]
        process = subprocess.Popen([*command, *settings], stdout=subprocess.DEVNULL)
        started = time.monotonic()
        seen = watch(process, Path(folder, "run", "metrics.jsonl"), args.every)
        seconds = time.monotonic() - started
        if process.returncode != 0:
            raise SystemExit(f"the run ended with {process.returncode}")
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
        times = np.array([row["step_time"] for row in rows if "step_time" in row])
    warm = seen[
        (seen[:, 0] >= args.steps // 10) & (seen[:, 0] < args.steps)
    ]  # then come evaluation and report
    print(
        f"{len(times)} steps in {seconds:.0f} s, {len(warm)} looks at training; {seen[:, 1].max():.0f} MB at most"
    )
    describe("resident memory, MB", warm[:, 0], warm[:, 1])
    describe("open files", warm[:, 0], warm[:, 2])
    steps = np.arange(len(times))[len(times) // 10 :]
    describe("seconds per update", steps, times[len(times) // 10 :])


if __name__ == "__main__":
    main()
