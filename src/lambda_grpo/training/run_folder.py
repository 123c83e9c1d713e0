"""The run folder: what a training run leaves behind, each file written aside and renamed.

.lock                held while a process trains here
config.yaml          what recipe and flags set: a recipe that repeats, or goes on with, the run
before.json          the evaluation before training
metrics.jsonl        one JSON object per logged step; names of validation begin with eval_
tokenizer/           the policy's tokenizer
machine_speed_*.json whether packing is right here and what it costs, for `tree_packing`; one file a rank
rollouts/*.parquet   one row per completion: step, group, prompt and completion, their ids, reward, advantage
checkpoint-*/        as transformers writes them, sealed; with validation, the best
model/               the trained policy; with validation, the best
curve.png            the curves of metrics.jsonl
report.html, .json   what `lambda-grpo report` makes of the rollouts
results.json         the table before → after; written last: the run is finished

A comparison holds such a folder for each credit and, over all of them, config.yaml, compare.png, report.html
and, last, compare.json. start_or_resume.py says how a run goes on after a kill, and
engines/trl/checkpoint_folders.py how checkpoints are sealed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lambda_grpo.whole_files import sync, without_nan, written_whole


def append_metrics(folder: Path, row: Mapping[str, Any]) -> None:
    """Add one line to metrics.jsonl; what is no finite number becomes null."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(without_nan(row)) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that was not written to its end is left out."""
    lines = (folder / "metrics.jsonl").read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def sync_log(folder: Path) -> None:
    """Wait until metrics.jsonl and the names of the rollouts are on the disk."""
    for path in (folder / "metrics.jsonl", folder / "rollouts", folder):
        if path.exists():
            sync(path)


def truncate_metrics(folder: Path, step: int) -> None:
    """Keep the rows of metrics.jsonl up to and including `step`."""
    path = folder / "metrics.jsonl"
    if path.exists():
        kept = [json.dumps(row) + "\n" for row in read_metrics(folder) if row["step"] <= step]
        with written_whole(path) as aside:
            aside.write_text("".join(kept), "utf-8")
