"""Rollout files made to do harm, or only damaged: read, counted as unusable, or refused; never a traceback.

The first were found by reading, most of the others by `tests/support/fuzz_readers.py`.
"""

import json
import os
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import MARKUP, assert_inert, assert_survived, random_rows
from rollout_samples import BY_HAND, write_jsonl

from lambda_grpo import InputError, cli
from lambda_grpo.report import ReportOptions, write_report
from lambda_grpo.report.analysis import analyse
from lambda_grpo.report.page import render
from lambda_grpo.rollouts import RolloutReader, files

TWO: list[dict[str, Any]] = [
    {"group": 0, "completion": "a", "reward": 1},
    {"group": 0, "completion": "b", "reward": 0},
]
VERL: list[dict[str, Any]] = [{"input": "p", "output": end, "score": 1.0} for end in "ab"]
TRL: list[dict[str, Any]] = [
    {"step": 1, "prompt": "p", "completion": end, "r": 1.0, "advantage": 0.0} for end in "ab"
]


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        analyse(RolloutReader([path]))
    return str(caught.value)


def changed(rows: list[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
    return [row | values for row in rows]


ROWS = {
    "messages of numbers": (changed(TWO, prompt=[{"role": "u", "content": 5}]), "prompt is [{'role': 'u', 'content': 5}]"),
    "blocks of numbers": (changed(TWO, prompt=[{"role": "u", "content": [4]}]), "expected text or chat messages"),
    "a role that is none": (changed(TWO, prompt=[{"role": ["u"], "content": "x"}]), "expected text or chat messages"),
    "a group of lists": (changed(TWO, group=[[]]), "row 1: group is [[]], expected a number, or text of at most 500"),
    "a long name": (changed(TWO, group="x" * 501), "row 1: group is 'xxx"),
    "no name": (changed(TWO, group=None), "row 1: group is None"),
    "a step beyond numbers": (changed(TWO, step=10**30), "step is 1000000000000000000000000000000, expected an integer"),
    "a step of nan": (changed(TWO, step=float("nan")), "step is nan, expected an integer"),
    "a reward whose square is none": (changed(TWO, reward=1e200), "reward is 1e+200, expected a finite number"),
    "correct in lists": (changed(TWO, correct=[1, 2]), "correct is [1, 2], expected true, false or a number"),
    "correct in words": (changed(TWO, correct="no"), "correct is 'no'"),
    "ids and a long text": (changed(TWO, token_ids=["x" * 10_000, *range(10_000)]), "token_ids is ['xxx"),
    "ids true and false": (changed(TWO, token_ids=[True, 1]), "token_ids is [True, 1]"),
    "ids without end": (changed(TWO, token_ids=[2**64]), "token_ids is [18446744073709551616]"),
    "uid of lists": (changed(VERL, uid=[1]), "row 1: uid is [1], expected a number"),
    "a prompt of lists": (changed(VERL, input=[[]]), "prompt is [[]], expected text or chat messages"),
    "columns without end": ([{f"\x1b[31m{i}" + "x" * 1000: 1 for i in range(100)}], "fit no known rollout file"),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "message"), ROWS.values(), ids=ROWS)
def test_values_of_a_wrong_kind(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    assert message in refusal(path)
    assert not assert_survived([path], tmp_path / "out.html"), "nothing of it can be used"


SOUND = json.dumps(TWO[0]).encode() + b"\n" + json.dumps(TWO[1]).encode() + b"\n"
BYTES = {
    "a number of 5,000 digits": (b'{"group": 0, "completion": "a", "reward": ' + b"9" * 5000 + b"}", "4300 digits"),
    "deep lists": (b'{"group": 0, "completion": "a", "reward": ' + b"[" * 500 + b"]" * 500 + b"}", "row 1: is nested too deeply"),
    "deep objects": (b'{"a":' * 900 + b"1" + b"}" * 900, "row 1: is nested too deeply"),
    "UTF-16": (SOUND.decode().encode("utf-16"), "row 1: is not UTF-8"),
    "Latin-1": (SOUND.replace(b'"a"', b'"\xe4"'), "row 1: is not UTF-8: byte 0xe4"),
    "zeros": (b"\0" * 1000, "row 1: is not a whole JSON object"),
    "gzip": (b"\x1f\x8b\x08\0" + b"x" * 50, "is compressed"),
    "no Parquet": (b"PAR1" + b"x" * 50 + b"PAR1", "is not a whole Parquet file"),
    "blank": (b"\n \n\t\n", "no group"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BYTES.values(), ids=BYTES)
def test_bytes_of_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        write_report([path], tmp_path / "out.html")
    assert_survived([path], tmp_path / "out.html")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(b"\xef\xbb\xbf" + SOUND)
    assert len(list(RolloutReader([tmp_path / "r.jsonl"]))) == 1


def test_a_line_without_end_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LINE_BYTES", 2**16)
    path = tmp_path / "r.jsonl"
    path.write_bytes(SOUND + b'{"group": "' + b"x" * 2**24 + b"\n" + SOUND.replace(b": 0,", b": 1,"))
    assert "row 3: is longer than 0 MB" in refusal(path)
    reader = RolloutReader([path], skip_bad=True)
    tracemalloc.start()
    assert [group.name for group in reader] == ["0", "1"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20, f"{peak} bytes for a line of 16 MB"
    assert reader.left_out.rows == 1


def test_rows_with_ever_new_columns_take_no_memory(tmp_path: Path) -> None:
    rows = [row | {f"c{i}-{k}": 0.0 for k in range(30)} for i, row in enumerate(TRL * 200)]
    [group] = RolloutReader([write_jsonl(tmp_path / "r.jsonl", rows)], group_size=400)
    [rows_of_step] = files.read_rows(tmp_path / "r.jsonl", pytest.fail)
    assert len(rows_of_step.columns) == 4 + 1 + 30, "those of the first row"
    assert len(group.rewards) == 400


def columns_of(rows: list[dict[str, Any]], **more: Any) -> pa.Table:
    return pa.table({name: [row[name] for row in rows] for name in rows[0]} | more)


def nested(depth: int) -> pa.DataType:
    kind = pa.int64()
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


PARQUET = {
    "text that is not UTF-8": (columns_of(TWO, completion=pa.array([b"\xff", b"a"]).view(pa.string())), "is not a whole Parquet file: 'utf-8' codec"),
    "a column twice": (pa.table([[0, 0], [1, 1], ["a", "b"], [0, 0]], names=["group", "reward", "completion", "group"]), "has 2 columns 'group'"),
    "correct in lists": (columns_of(TWO, correct=[[1, 2], [3, 4]]), "correct is [1, 2], expected"),
    "bytes for text": (columns_of(TWO, completion=[b"a", b"b"]), "completion is b'a', expected text"),
    "times for steps": (columns_of(TWO, step=pa.array([0, 0], pa.timestamp("ns"))), "step is"),
    "deep lists": (columns_of(TWO, prompt=pa.nulls(2, nested(150))), "is not a whole Parquet file"),
    "no rows": (pa.table({"group": [], "reward": [], "completion": []}), ""),
}  # fmt: skip


@pytest.mark.parametrize(("table", "message"), PARQUET.values(), ids=PARQUET)
def test_parquet_of_wrong_kinds(tmp_path: Path, table: pa.Table, message: str) -> None:
    path = tmp_path / "r.parquet"
    pq.write_table(table, path)
    assert not assert_survived([path], tmp_path / "out.html")
    if message:
        assert message in refusal(path)


def test_ids_in_place_of_texts_in_tables_that_are_compared(tmp_path: Path) -> None:
    for step in (1, 2):
        path = tmp_path / "completions" / f"{step}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(columns_of(changed(TRL, step=step, completion=[1, 2])), path)
    assert "completion is [1, 2], expected text or chat messages" in refusal(tmp_path)
    assert not assert_survived([tmp_path], tmp_path / "out.html")


def test_a_users_own_columns_are_not_decoded(tmp_path: Path) -> None:
    pq.write_table(columns_of(TRL, when=pa.array([1, 2], pa.timestamp("ns"))), tmp_path / "r.parquet")
    assert len(list(RolloutReader([tmp_path / "r.parquet"]))) == 1


def test_what_is_no_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "run" / "1.jsonl", TWO)
    os.mkfifo(tmp_path / "run" / "2.jsonl")  # to open it would wait for ever
    (tmp_path / "run" / "3.jsonl").mkdir()
    (tmp_path / "run" / "4.jsonl").symlink_to("4.jsonl")
    (tmp_path / "run" / "5.jsonl").symlink_to("nothing")
    (tmp_path / "run" / "6.jsonl").symlink_to("/dev/zero")
    reader = RolloutReader([tmp_path / "run"], skip_bad=True)
    assert len(list(reader)) == 1
    assert reader.left_out.files == 5
    for path in ("x" * 5000, "a\0b", "/dev/zero", tmp_path / "run" / "4.jsonl"):
        with pytest.raises(InputError):
            RolloutReader([path])


def test_many_prompts_in_one_group(tmp_path: Path) -> None:
    rows = [{"group": 0, "completion": "a", "prompt": str(i), "reward": 0} for i in range(5_000)]
    [group] = RolloutReader([write_jsonl(tmp_path / "r.jsonl", rows)])
    assert np.array_equal(group.contexts, np.arange(5_000))


def test_messages_do_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "a\x1b[2Jb.jsonl", [{"\x1b]0;title\x07": 1, "\u202e": 2}])
    assert cli.main(["report", str(path), "-o", str(tmp_path / "r.html")]) == 2
    said = capsys.readouterr().err
    assert "fit no known rollout file" in said
    assert said.replace("\n", "").isprintable()


@pytest.mark.parametrize("seed", range(40))
def test_random_hostile_rows(tmp_path: Path, seed: int) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", random_rows(random.Random(seed)))
    assert_survived([path], tmp_path / "out.html")


@pytest.mark.parametrize("escape", ["<", "</script><script>", "λ"])
def test_the_page_check_sees_a_planted_fault(tmp_path: Path, escape: str) -> None:
    write_report([write_jsonl(tmp_path / "r.jsonl", BY_HAND)], tmp_path / "r.html", ReportOptions())
    html = (tmp_path / "r.html").read_text()
    assert assert_inert(html) == json.loads((tmp_path / "r.json").read_text())
    for fault in (html.replace('"count"', f'"{escape}"'), html.replace("<body>", f"<body>{escape}")):
        with pytest.raises(AssertionError):
            assert_inert(fault)
    assert MARKUP not in render({"runs": [], "groups": [], "notes": [MARKUP]})
