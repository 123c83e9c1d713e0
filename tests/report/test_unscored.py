"""Completions that no reward function could score, and images in prompts: kept, shown as such, in no mean of rewards."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rollout_samples import write_jsonl

from lambda_grpo.report import write_report
from lambda_grpo.report.analysis import analyse
from lambda_grpo.rollouts import RolloutReader
from lambda_grpo.rollouts.writing import Rollouts, write_rollouts

# The tree of trl_engine/test_unscorable.py: 5 is shared by three completions, the second of which is unscored.
IDS = [[5, 6], [5, 7], [5, 8], [9]]
REWARDS = [1.0, None, 0.0, 0.0]
# Mean 1/3 and sample std 1/√3 over the three that have a reward.
HIGH, LOW = (2 / 3) / (1 / math.sqrt(3) + 1e-4), (-1 / 3) / (1 / math.sqrt(3) + 1e-4)


def rows_of(rewards: list[float | None], group: str = "a") -> list[dict[str, Any]]:
    return [
        {"group": group, "prompt": "p", "completion": "c", "token_ids": ids, "reward": r}
        for ids, r in zip(IDS, rewards, strict=True)
    ]


@pytest.mark.parametrize("kind", ["null", "NaN", "Parquet null", "Parquet NaN"])
def test_by_hand(tmp_path: Path, kind: str) -> None:
    rows = rows_of([math.nan if r is None and kind.endswith("NaN") else r for r in REWARDS])
    path = tmp_path / "r.parquet"
    if kind.startswith("Parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path = write_jsonl(tmp_path / "r.jsonl", rows)
    reader = RolloutReader([path])
    groups = list(reader)
    assert (reader.left_out.rows, len(groups)) == (0, 1)
    np.testing.assert_allclose(groups[0].advantages, [HIGH, 0, LOW, LOW])
    analysis = analyse(RolloutReader([path]))
    row = {name: values[0] for name, values in analysis.groups.items()}
    assert (row["completions"], row["scored"], row["tokens"], row["spread"]) == (4, 3, 7, 1)
    assert row["reward"] == row["accuracy"] == pytest.approx(1 / 3)  # not 1/4
    assert row["shared_tokens"] == pytest.approx(3 / 7), "it is in the tree and in |λ|"
    assert row["path_depth"] == pytest.approx(3 / 4)
    # Depth first: the root, "5", its three leaves, "9". R̂("5") is (1 + 0) / 2, not 1/3.
    nodes = analysis.nodes
    assert nodes["size"].tolist() == [4, 3, 1, 1, 1, 1]
    assert nodes["scored"].tolist() == [3, 2, 1, 0, 1, 1]
    np.testing.assert_allclose(nodes["reward"], [1 / 3, 1 / 2, 1, math.nan, 0, 0])
    np.testing.assert_allclose(nodes["advantage"], [0, (HIGH + LOW) / 2, HIGH, 0, LOW, LOW], atol=1e-12)


def test_means_over_groups_weigh_by_scored_completions(tmp_path: Path) -> None:
    """Rewards 1, 0, 0 and 2, 4: their mean is 7/5. By completions it would be (4·1/3 + 4·3) / 8 = 5/3."""
    rows = [*rows_of(REWARDS), *rows_of([2.0, None, None, 4.0], "b"), *rows_of([None] * 4, "c")]
    analysis = analyse(RolloutReader([write_jsonl(tmp_path / "r.jsonl", rows)]))
    assert analysis.runs()["reward"].tolist() == [pytest.approx(7 / 5)]
    assert analysis.steps()["scored"].tolist() == [5]
    assert np.isnan(analysis.groups["reward"][2]), "a group without any reward has no mean"
    assert np.isnan(analysis.groups["best_pushed_down"][2])


def test_a_best_one_is_scored(tmp_path: Path) -> None:
    """Of one scored completion nothing can be compared, so it is neither best nor pushed down."""
    path = write_jsonl(tmp_path / "r.jsonl", rows_of([None, None, None, 1.0]))
    groups = analyse(RolloutReader([path])).groups
    assert groups["spread"].tolist() == [0]
    assert np.isnan(groups["best_pushed_down"]).all()


def test_the_twin_and_the_note(tmp_path: Path) -> None:
    written = write_report([write_jsonl(tmp_path / "r.jsonl", rows_of(REWARDS))], tmp_path / "r.html")
    content = json.loads(written.json.read_text())
    assert content["groups"][0]["rewards"] == REWARDS
    assert content["groups"][0]["nodes"]["reward"][3] is None
    # |λ|·A of GRPO is the sum over the scored members: HIGH + LOW, and a third of it under λ-GRPO.
    assert content["groups"][0]["nodes"]["push_grpo"][1] == pytest.approx(HIGH + LOW)
    assert content["groups"][0]["nodes"]["push_lambda"][1] == pytest.approx((HIGH + LOW) / 3)
    assert written.notes == [
        "r.jsonl: 1 of 4 completions is unscored: no reward function gave a score. Unscored completions are in the trees, "
        "and in no mean of rewards."
    ]


def test_trl_tables_with_empty_rewards(tmp_path: Path) -> None:
    """A row that all functions left empty is unscored; one that some left empty is not. TRL gives it 0."""
    frame = pd.DataFrame(
        {
            "step": 1,
            "prompt": "p",
            "completion": list("abcd"),
            "format": [1.0, None, None, 0.5],
            "answer": [0.0, 2.0, None, None],
            "advantage": [-1 / 6, 5 / 6, 0, -4 / 6],
        }
    )
    (tmp_path / "completions").mkdir()
    frame.to_parquet(tmp_path / "completions" / "completions_00001.parquet")
    reader = RolloutReader([tmp_path])
    (group,) = reader
    np.testing.assert_array_equal(group.rewards, [1, 2, math.nan, 0.5])
    assert group.scored.tolist() == [True, True, False, True]
    assert reader.notes == [], "the sum explains the advantages of the scored rows"


def rollouts(prompts: list[Any], rewards: list[float]) -> Rollouts:
    return Rollouts(
        step=0,
        groups=np.zeros(len(prompts), int),
        prompts=prompts,
        completions=["a", "b"],
        token_ids=[[5], [6]],
        rewards=np.array(rewards),
        advantages=np.zeros(2),
    )


def test_training_writes_null(tmp_path: Path) -> None:
    path = write_rollouts(tmp_path, rollouts(["p", "p"], [math.nan, 1.0]))
    assert pq.read_table(path)["reward"].to_pylist() == [None, 1.0]


def ask(image: Any) -> list[dict[str, Any]]:
    """As TRL hands on a prompt with an image."""
    return [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Which?"}]}
    ]


def test_an_image_is_saved_as_a_placeholder(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (64, 48), colour) for colour in ("red", "blue"))
    write_rollouts(tmp_path / "same", rollouts([ask(red), ask(red.copy())], [0.0, 1.0]))
    (group,) = RolloutReader([tmp_path / "same"])
    assert group.prompt.startswith("[image 64×48, ")
    assert group.prompt.endswith("]Which?")
    assert group.contexts.tolist() == [0, 0]
    write_rollouts(tmp_path / "two", rollouts([ask(red), ask(blue)], [0.0, 1.0]))
    (group,) = RolloutReader([tmp_path / "two"])
    assert group.contexts.tolist() == [0, 1], "prompts that differ in their image only share no step"
    assert write_report([tmp_path / "two"], tmp_path / "r.html").shown == 1


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        (np.zeros((4, 3), np.uint8), "[array 4×3, "),
        (object(), "[image]Which?"),
        ("https://example.org/a.png", "[image]Which?"),
    ],
    ids=["array", "object", "address"],
)
def test_other_things_in_a_prompt(tmp_path: Path, image: Any, shown: str) -> None:
    write_rollouts(tmp_path / "run", rollouts([ask(image)] * 2, [0.0, 1.0]))
    (group,) = RolloutReader([tmp_path / "run"])
    assert group.prompt.startswith(shown)
