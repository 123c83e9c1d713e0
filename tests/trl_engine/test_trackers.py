"""TRL's table of completions, trackio and wandb get what they get from TRL, and our metrics besides.

Both trackers are really run. They are heavy and in no extra: `pip install trackio wandb` beside `[train]` brings their
tests to life. Neither talks to a server: wandb is offline, and trackio writes to a folder.
"""

import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_trainers import GROUP, PROMPTS, make_trainer, reward

from lambda_grpo.rollouts import RolloutReader

OURS = {
    "tree/path_depth", "tree/intermediate_proportion", "tree/shared_tokens", "tree/flat_groups", "credit/mean_weight",
    "credit/truncated", "credit/unscorable", "hazards/skipped_steps",
}  # fmt: skip
TRAIN = """
import json, sys
from pathlib import Path
from tiny_trainers import make_trainer
folder, tracker = sys.argv[1:]
trainer = make_trainer(
    Path(folder), report_to=tracker, max_steps=2, run_name="tried", project="tried", log_completions=True,
    num_completions_to_print=1, credit_kwargs={"power": 0.5},
)
trainer.train()
Path(folder, "history.json").write_text(json.dumps(trainer.state.log_history))
"""


def history(folder: Path, tracker: str, **environment: str) -> list[dict[str, Any]]:
    """What two steps logged, in a process of its own: trackers leave threads and servers behind."""
    paths = [str(Path(__file__).parents[1] / "support"), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(folder), tracker],
        capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in json.loads((folder / "history.json").read_text()) if "grad_norm" in line]
    assert len(lines) == 2
    assert set(lines[0]) >= OURS
    return lines


def assert_received(received: list[dict[str, Any]], logged: list[dict[str, Any]]) -> None:
    """Each step's values of ours arrived, under the names that transformers gives them."""
    steps = [values for values in received if "train/grad_norm" in values]
    assert len(steps) == len(logged)
    for values, line in zip(steps, logged, strict=True):
        assert {name: values[f"train/{name}"] for name in OURS} == {name: line[name] for name in OURS}


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of a run file: LevelDB's log, in blocks of 32 KiB. A chunk is checksum, length, kind, bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, chunks = file.read_bytes(), 7, []
    while position + 7 <= len(data):
        length, kind = struct.unpack_from("<HB", data, position + 4)
        rest_of_block = 32768 - position % 32768
        if rest_of_block < 7 or kind == 0:
            position += rest_of_block
            continue
        chunks.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last chunk
            yield wandb_internal_pb2.Record.FromString(b"".join(chunks))
            chunks = []


@pytest.mark.slow
def test_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    logged = history(tmp_path, "wandb", WANDB_MODE="offline", WANDB_DIR=str(tmp_path), HOME=str(tmp_path))
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    records = list(wandb_records(file))
    received = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert_received(received, logged)
    assert any("completions/nrows" in values for values in received)
    configured = [
        (item.key, json.loads(item.value_json))
        for record in records
        if record.WhichOneof("record_type") in ("run", "config")
        for item in [*record.run.config.update, *record.config.update]
    ]
    assert ("credit", "lambda_grpo") in configured
    assert ("credit_kwargs", {"power": 0.5}) in configured


@pytest.mark.slow
def test_trackio(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    logged = history(tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"), HOME=str(tmp_path))
    database = sqlite3.connect(tmp_path / "trackio" / "tried.db")
    received = [json.loads(row[0]) for row in database.execute("SELECT metrics FROM metrics ORDER BY id")]
    assert_received(received, logged)
    tables = [values["completions"]["_value"] for values in received if "completions" in values]
    assert len(tables[0]) == len(PROMPTS) * GROUP
    (config,) = [json.loads(row[0]) for row in database.execute("SELECT config FROM configs")]
    assert (config["credit"], config["credit_kwargs"]) == ("lambda_grpo", {"power": 0.5})
    database.close()


def test_trls_table_of_completions(tmp_path: Path) -> None:
    """A row per completion, with TRL's columns. The advantage is TRL's own: one number per completion."""
    make_trainer(tmp_path, log_completions=True, num_completions_to_print=1, max_steps=2).train()
    files = sorted((tmp_path / "completions").glob("*.parquet"))
    assert [file.name for file in files] == ["completions_00001.parquet", "completions_00002.parquet"]
    for step, file in enumerate(files, start=1):
        table = pd.read_parquet(file)
        assert list(table.columns) == ["step", "prompt", "completion", "reward", "advantage"]
        assert len(table) == len(PROMPTS) * GROUP
        assert set(table["step"]) == {step}
        assert table["reward"].tolist() == reward(table["completion"].tolist())
        for _, group in table.groupby("prompt"):
            centred = group["reward"] - group["reward"].mean()
            np.testing.assert_allclose(
                group["advantage"], centred / (group["reward"].std() + 1e-4), atol=1e-5
            )


def test_our_reader_takes_that_table(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, log_completions=True, num_completions_to_print=1, max_steps=1)
    trainer.train()
    trainer.processing_class.save_pretrained(tmp_path / "tokenizer")
    groups = list(RolloutReader([tmp_path / "completions"], tokenizer=tmp_path / "tokenizer"))
    assert len(groups) == len(PROMPTS)
    assert {len(group.rewards) for group in groups} == {GROUP}
