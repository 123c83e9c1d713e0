"""Reading rollouts: each format, how groups are recognised, and every kind of bad input."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rollout_samples import group_rows, save_tokenizer, write_jsonl, write_run

from lambda_grpo import InputError, ProcessTree
from lambda_grpo.rollouts import RolloutReader
from lambda_grpo.rollouts.paths import find_runs
from lambda_grpo.rollouts.tokens import FALLBACK, ids_of_pieces, pieces
from lambda_grpo.rollouts.writing import Rollouts, write_rollouts

PLAIN = [
    {"group": "a", "completion": "1 2 3", "reward": 1},
    {"group": "a", "completion": "1 2 4", "reward": 0},
    {"group": "b", "completion": "x", "reward": 0.5},
    {"group": "b", "completion": "x y", "reward": 0.5},
]


def read(*paths, **options):
    return list(RolloutReader(paths, **options))


# Formats


def test_plain_json_lines(tmp_path):
    groups = read(write_jsonl(tmp_path / "r.jsonl", PLAIN))
    assert [(g.run, g.step, g.name, len(g.texts)) for g in groups] == [
        ("r.jsonl", 0, "a", 2),
        ("r.jsonl", 0, "b", 2),
    ]
    assert groups[0].texts == ["1 2 3", "1 2 4"]
    assert groups[0].tokens_from == FALLBACK
    # Words: "1", " 2", then " 3" or " 4": one step of two tokens, two leaves.
    assert ProcessTree.build(groups[0].token_ids).set_sizes().tolist() == [[2, 2, 1], [2, 2, 1]]
    # (1 - 1/2) / (std + 1e-4), std = sqrt(1/2)
    assert groups[0].advantages[0] == pytest.approx(0.5 / (math.sqrt(0.5) + 1e-4))
    assert groups[1].advantages.tolist() == [0, 0]


def test_our_run_folder(tmp_path):
    ids = [[5, 6, 7], [5, 6, 8], [9], [9, 9]]
    for step in (2, 10):
        rollouts = Rollouts(
            step=step,
            groups=np.array([0, 0, 1, 1]),
            prompts=["p", "p", [{"role": "user", "content": "q"}], [{"role": "user", "content": "q"}]],
            completions=["a", "b", "c", "d"],
            token_ids=ids,
            rewards=np.array([1.0, 0, 0, 0]),
            advantages=np.array([0.25, -0.25, 0, 0]),
        )
        write_rollouts(tmp_path / "run", rollouts)
    groups = read(tmp_path / "run")
    assert [(g.run, g.step, g.name, g.prompt) for g in groups] == [
        ("run", 2, "0", "p"), ("run", 2, "1", "q"), ("run", 10, "0", "p"), ("run", 10, "1", "q"),
    ]  # fmt: skip
    assert [row.tolist() for row in groups[0].token_ids] == ids[:2]
    assert groups[0].advantages.tolist() == [0.25, -0.25], "the trainer's own, not ours"


def trl_table(folder, step, rows, size=2, **extra):
    """A completions table as TRL 1.16 writes it, from (prompt, completion, reward) rows."""
    rewards = np.array([r for _, _, r in rows], float)
    frame = pd.DataFrame(
        {
            "step": [step] * len(rows),
            "prompt": [p for p, _, _ in rows],
            "completion": [c for _, c, _ in rows],
            "accuracy_reward": rewards,
            **extra,
            "advantage": (
                rewards.reshape(-1, size) - rewards.reshape(-1, size).mean(1, keepdims=True)
            ).ravel(),
        }
    )
    (folder / "completions").mkdir(parents=True, exist_ok=True)
    frame.to_parquet(folder / "completions" / f"completions_{step:05d}.parquet")


def test_trl_groups_are_runs_of_equal_prompts(tmp_path):
    # Groups of two; the prompt "q" came twice in a row, so four rows are two groups.
    rows = [("p", "a", 1), ("p", "b", 0), *[("q", c, r) for c, r in zip("cdef", (1, 0, 0, 1), strict=True)]]
    trl_table(tmp_path, 10, rows)
    groups = read(tmp_path)
    assert [(g.name, g.texts) for g in groups] == [("0", ["a", "b"]), ("1", ["c", "d"]), ("2", ["e", "f"])]
    assert [g.rewards.tolist() for g in groups] == [[1, 0], [1, 0], [0, 1]]


def test_trl_tells_rewards_from_columns_of_the_user(tmp_path):
    rows = [("p", "a", 1), ("p", "b", 0), ("p", "c", 0), ("q", "d", 0), ("q", "e", 0), ("q", "f", 1)]
    trl_table(tmp_path, 1, rows, size=3, my_note=list("uvwxyz"), my_float=[0.3, 0.9, 0.1, 0.0, 0.1, 0.2])
    reader = RolloutReader([tmp_path])
    assert [g.rewards.tolist() for g in reader] == [[1, 0, 0], [0, 0, 1]]
    assert reader.notes == []


def test_trl_weighted_rewards_are_said_to_be_unknown(tmp_path):
    rows = [("p", "a", 1), ("p", "b", 0), ("p", "c", 0), ("p", "d", 0)]
    trl_table(tmp_path, 1, rows)
    file = tmp_path / "completions" / "completions_00001.parquet"
    frame = pd.read_parquet(file)
    frame["advantage"] = [-1.0, 2.0, -1.0, 0.0]
    frame.to_parquet(file)
    reader = RolloutReader([tmp_path])
    assert [g.rewards.tolist() for g in reader] == [[1, 0, 0, 0]]
    assert "plain sum of accuracy_reward" in reader.notes[0]


def test_trl_logs_a_batch_several_times_but_it_counts_once(tmp_path):
    rows = [("p", "a", 1), ("p", "b", 0)]
    trl_table(tmp_path, 1, rows)
    trl_table(tmp_path, 2, rows)
    trl_table(tmp_path, 3, [("p", "a", 0), ("p", "b", 1)])
    reader = RolloutReader([tmp_path])
    assert [g.step for g in reader] == [1, 3]
    assert "counted once" in reader.notes[0]


def test_trl_chat_messages(tmp_path):
    def say(text):
        return [{"role": "assistant", "content": text}]

    trl_table(tmp_path, 1, [("p", say("a b"), 1), ("p", say("a c"), 0)])
    assert read(tmp_path)[0].texts == ["a b", "a c"]


def test_trl_without_a_common_group_size(tmp_path):
    rows = [("p", "a", 1), ("p", "b", 0), ("p", "c", 0), ("q", "d", 0), ("q", "e", 1), ("r", "f", 1)]
    trl_table(tmp_path, 1, rows)
    with pytest.raises(InputError, match=r"00001\.parquet, row 1: 3 neighbouring rows .* --group_size"):
        read(tmp_path)
    with pytest.raises(
        InputError, match="row 1: 3 neighbouring rows share a prompt, no multiple of the group size 2"
    ):
        read(tmp_path, group_size=2)
    reader = RolloutReader([tmp_path], group_size=2, skip_bad=True)
    assert [g.texts for g in reader] == [["d", "e"]]
    assert reader.left_out.rows == 4


def test_verl_dumps(tmp_path):
    """Groups are rows of equal input, in any order: verl balances a batch before it dumps it."""
    for step in (9, 10):
        rows = [
            {"input": p, "output": f"{c} {step}", "gts": "x", "score": s, "step": step, "acc": s > 0}
            for p, c, s in [("p", "a", 1.0), ("q", "b", 0.0), ("p", "c", 0.0), ("q", "d", 1.0)]
        ]
        write_jsonl(tmp_path / f"{step}.jsonl", rows)
    groups = read(tmp_path)
    assert [(g.step, g.texts) for g in groups] == [
        (9, ["a 9", "c 9"]), (9, ["b 9", "d 9"]), (10, ["a 10", "c 10"]), (10, ["b 10", "d 10"]),
    ]  # fmt: skip
    assert groups[0].correct.tolist() == [1, 0]


def test_token_strings_give_ids(tmp_path):
    rows = [{"group": 0, "completion": t, "tokens": list(t), "reward": 0} for t in ("ab", "ac")]
    group = read(write_jsonl(tmp_path / "r.jsonl", rows))[0]
    assert [ids.tolist() for ids in group.token_ids] == [[0, 1], [0, 2]]
    assert group.token_texts == [["a", "b"], ["a", "c"]]


def test_a_tokenizer_of_the_library(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"1": 0, "2": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    group = read(write_jsonl(tmp_path / "r.jsonl", PLAIN[:2]), tokenizer=str(tmp_path))[0]
    assert [ids.tolist() for ids in group.token_ids] == [[0, 1, 2], [0, 1, 2]]
    with pytest.raises(InputError, match="cannot load a tokenizer from"):
        read(tmp_path / "r.jsonl", tokenizer=str(tmp_path / "r.jsonl"))


def test_different_prompts_in_a_group_share_nothing(tmp_path):
    rows = [{"group": 0, "prompt": p, "completion": "same", "reward": 0} for p in "aba"]
    assert read(write_jsonl(tmp_path / "r.jsonl", rows))[0].contexts.tolist() == [0, 1, 0]


def test_several_runs_get_the_shortest_names_that_differ(tmp_path):
    for name in ("x/a", "y/a", "y/b"):
        write_run(tmp_path / name, steps=1, groups=1)
    names = [run.name for run in RolloutReader([tmp_path / "x/a", tmp_path / "y"]).runs]
    assert names == ["x/a", "y/a", "b"]


def test_pieces_join_to_the_text():
    text = "Ünïcode\n\n  and_1 +2\t= 3. 🙂é \u202e"
    assert "".join(pieces(text)) == text
    assert [ids.tolist() for ids in ids_of_pieces([["a", "b"], ["b"]])] == [[0, 1], [1]]


def test_a_long_file_is_read_group_by_group(tmp_path):
    """The first group comes before the file has been read: an error at its end does not stop it."""
    rng = np.random.default_rng(0)
    rows = [row for group in range(3) for row in group_rows(rng, 7, group)]
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    path.write_bytes(path.read_bytes() + b"{")
    groups = iter(RolloutReader([path]))
    assert next(groups).name == "0"
    assert next(groups).name == "1"
    with pytest.raises(InputError, match="row 25: is not a whole JSON object"):
        list(groups)


# Bad input: the file and row in the message, and what --skip_bad leaves out.


def spoilt(index, **changes):
    rows = [dict(row) for row in PLAIN]
    rows[index] |= changes
    return [{key: value for key, value in row.items() if value is not ...} for row in rows]


BAD: dict[str, tuple[list, str]] = {
    "no reward": (spoilt(1, reward=...), "row 2: reward is missing, expected a finite number"),
    "infinite reward": (spoilt(3, reward=math.inf), "row 4: reward is inf"),
    "advantage of nan": ([{**r, "advantage": math.nan} for r in PLAIN], "row 1: advantage is nan"),
    "text reward": (spoilt(3, reward="good"), "row 4: reward is 'good'"),
    "huge reward": (spoilt(3, reward=10**400), "row 4: reward is 1000"),
    "group of one": (PLAIN[:3], "row 3: group 'b' of step 0 has one completion, expected at least 2"),
    "no completion": (spoilt(2, completion=...), "row 3: has no completion or token_ids or tokens"),
    "numeric completion": (spoilt(2, completion=5), "row 3: completion is 5, expected text or chat"),
    "ids of text": (spoilt(0, token_ids=["a"]), r"row 1: token_ids is \['a'\], expected a list of integers"),
    "negative ids": ([{**r, "token_ids": [-3]} for r in PLAIN], r"row 1: token_ids is \[-3\]"),
    "nested ids": ([{**r, "token_ids": [[1], [2, 3]]} for r in PLAIN], "row 1: token_ids is"),
    "ids and tokens": ([{**r, "token_ids": [1, 2], "tokens": ["a"]} for r in PLAIN], "row 1: tokens has 1"),
    "step of text": ([{**r, "step": "x"} for r in PLAIN], "row 1: step is 'x', expected an integer"),
    "rows apart": ([*PLAIN, *PLAIN[:2]], "row 5: group 'a' of step 0 came"),
    "mixed rows": ([*PLAIN, {"input": "p", "output": "c", "score": 1}], "row 5: has no group, reward"),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "message"), BAD.values(), ids=list(BAD))
def test_bad_rows(tmp_path, rows, message):
    path = write_jsonl(tmp_path / "bad.jsonl", rows)
    with pytest.raises(InputError, match=rf"bad\.jsonl, {message}") as raised:
        read(path)
    reader = RolloutReader([path], skip_bad=True)
    kept = sum(len(group.rewards) for group in reader)
    assert ("--skip_bad goes on without it" in str(raised.value)) == (kept > 0), "only if something is left"
    assert reader.left_out.rows >= 1
    assert kept + reader.left_out.rows == len(rows), "every row is either kept or counted"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"group": "a", "completion": "\xff", "reward": 1}', "row 3: is not UTF-8: byte 0xff at 30"),
        (b'{"group": "a", ', "row 3: is not a whole JSON object"),
        (b"[1, 2]", "row 3: holds a list, expected a JSON object"),
        (b"[" * 100_000, "row 3: is nested too deeply"),
    ],
)
def test_bad_lines(tmp_path, line, message):
    path = write_jsonl(tmp_path / "bad.jsonl", PLAIN[:2])
    path.write_bytes(path.read_bytes() + line + b"\n" + write_jsonl(tmp_path / "x", PLAIN[2:]).read_bytes())
    with pytest.raises(InputError, match=message):
        read(path)
    reader = RolloutReader([path], skip_bad=True)
    assert [group.name for group in reader] == ["a", "b"]
    assert (reader.left_out.rows, reader.left_out.groups, reader.left_out.files) == (1, 0, 0)
    assert message in reader.left_out.examples[0]


def test_truncated_parquet(tmp_path):
    run = write_run(tmp_path / "run", steps=2, groups=1)
    file = run / "rollouts" / "step-000000-rank-0.parquet"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"step-000000-rank-0\.parquet: is not a whole Parquet file"):
        read(run)
    reader = RolloutReader([run], skip_bad=True)
    assert [group.step for group in reader] == [1]
    assert reader.left_out.files == 1


def test_mixed_formats_in_one_folder(tmp_path):
    write_jsonl(tmp_path / "1.jsonl", PLAIN)
    write_jsonl(tmp_path / "2.jsonl", [{"input": "p", "output": "c", "score": 1.0, "step": 2}] * 2)
    with pytest.raises(InputError, match=r"2\.jsonl, row 1: verl's format, but 1\.jsonl has lambda-grpo's"):
        read(tmp_path)
    reader = RolloutReader([tmp_path], skip_bad=True)
    assert len(list(reader)) == 2
    assert reader.left_out.rows == 2


def test_parquet_of_something_else(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"columns a fit no known rollout file\. Known: lambda-grpo: group"):
        read(tmp_path / "x.parquet")


def test_bad_reward_in_parquet_names_the_row(tmp_path):
    rows = [row for group in range(3) for row in group_rows(np.random.default_rng(0), 0, group)]
    rows[17]["reward"] = math.inf
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet, row 18: reward is inf"):
        read(tmp_path / "x.parquet")
    reader = RolloutReader([tmp_path / "x.parquet"], skip_bad=True)
    assert [group.name for group in reader] == ["0", "1"]
    assert (reader.left_out.rows, reader.left_out.groups) == (8, 1)


@pytest.mark.parametrize(
    ("paths", "message"),
    [((), "no path given"), (("nothing",), "nothing: no such file or folder"), ((".",), "holds no rollouts")],
)
def test_bad_paths(tmp_path, monkeypatch, paths, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        read(*paths)


def test_empty_file(tmp_path):
    (tmp_path / "x.jsonl").touch()
    with pytest.raises(InputError, match=r"x\.jsonl: is empty"):
        read(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"rubbish\n", b'{"a": 1}\n', b'{"group": 0, "completion": "", "reward": 1}\n']
)
def test_skip_bad_is_offered_only_where_it_leaves_something(tmp_path, content):
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(content)
    with pytest.raises(InputError) as raised:
        read(bad)
    assert "--skip_bad" not in str(raised.value)
    with pytest.raises(InputError, match="--skip_bad goes on without it, and counts what is left out"):
        read(bad, write_jsonl(tmp_path / "good.jsonl", PLAIN))


def test_lone_surrogates_survive(tmp_path):
    rows = [{"group": 0, "completion": "a\ud800b", "reward": 0}] * 2
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(path)[0].texts[0] == "a\ud800b"


def test_names_are_given_or_made_and_unlike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x/run", "y/run", "z", "lr=0.1"):
        write_jsonl(tmp_path / name / "r.jsonl", PLAIN)
    assert [run.name for run in find_runs(["old=x/run", "y/run", "lr=0.1"])] == ["old", "y/run", "lr=0.1"]
    assert [run.name for run in find_runs(["z=x/run", "z"])] == ["z", "z (2)"]
    assert [run.name for run in find_runs([f"both={tmp_path / 'x'}", "z"])] == ["both", "z"]
    shutil.copytree("y/run", "x/other")
    assert [run.name for run in find_runs(["both=x"])] == ["both/other", "both/run"]


def test_a_file_belongs_to_one_run(tmp_path):
    file = write_jsonl(tmp_path / "rollouts" / "r.jsonl", PLAIN)
    for other in (file, file.parent):
        with pytest.raises(InputError, match=r"r\.jsonl is named twice, it is in .* too"):
            find_runs([tmp_path, other])


# A tokenizer of another policy


def test_ids_of_another_tokenizer_are_said(tmp_path):
    rows = [
        {"group": g, "completion": text, "token_ids": ["abc".index(c) for c in text], "reward": r}
        for g in (0, 1)
        for text, r in (("abcab", 1), ("abcca", 0))
    ]
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    own, other = save_tokenizer(tmp_path / "own", "abc"), save_tokenizer(tmp_path / "other", "xyzabc")
    reader = RolloutReader([path], tokenizer=own)
    assert len(list(reader)) == 2
    assert reader.notes == []
    reader = RolloutReader([path], tokenizer=other)
    assert len(list(reader)) == 2
    (note,) = reader.notes  # once, not for each group
    assert (
        f"the tokenizer {other} does not fit the token ids: a completion saved as 'abcab' decodes to" in note
    )


def test_special_tokens_are_no_misfit(tmp_path):
    from tokenizers import AddedToken, Tokenizer

    folder = save_tokenizer(tmp_path / "own", "abc")
    tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
    tokenizer.add_special_tokens([AddedToken("<|end_of_text|>")])
    tokenizer.save(folder + "/tokenizer.json")
    rows = [
        {"group": 0, "completion": c, "token_ids": [i, 3], "reward": i} for i, c in enumerate("ab")
    ]  # the end token is in the ids, and not in the text
    reader = RolloutReader([write_jsonl(tmp_path / "r.jsonl", rows)], tokenizer=folder)
    list(reader)
    assert reader.notes == []
