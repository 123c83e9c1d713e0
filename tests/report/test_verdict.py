"""What the report opens with: two sentences and their numbers, worked by hand."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rollout_samples import write_jsonl

from lambda_grpo import ProcessTree
from lambda_grpo.credit import CREDITS
from lambda_grpo.report import ReportOptions, write_report
from lambda_grpo.report.analysis import analyse
from lambda_grpo.report.verdict import verdict
from lambda_grpo.rollouts import RolloutReader
from lambda_grpo.rollouts.writing import Rollouts, write_rollouts


def rows(ids: list[list[int]], rewards: list[float], **more: Any) -> list[dict[str, Any]]:
    return [
        {"group": 0, "prompt": "p", "completion": "c", "token_ids": row, "reward": r, **more}
        for row, r in zip(ids, rewards, strict=True)
    ]


BRANCHING = [[5, 6, 7], [5, 6, 8], [5, 9], [4]]  # |λ|: 3 2 1, 3 2 1, 3 1, 1


def opening(path: Path, **options: Any) -> dict[str, Any]:
    written = write_report([path], path.parent / "report.html", ReportOptions(**options))
    content = json.loads(written.json.read_text())
    return dict(content["runs"][0]["verdict"])


def test_by_hand(tmp_path: Path) -> None:
    """Advantages 3, -1, -1, -1: Σ|a| is 3·3 + 3 + 2 + 1 = 15.

    λ-GRPO takes off: 2/3 of the first token of three completions, (3 + 1 + 1)·2/3, and 1/2 of the second of two,
    (3 + 1)/2: 16/3 in all. Prompts of 10 tokens: 4·10 + 9 = 49 tokens, 10 + 6 unique, 10 + 9 with the prompt once.
    """
    given = rows(BRANCHING, [1, 0, 0, 0], prompt_ids=list(range(10)))
    for row, advantage in zip(given, (3, -1, -1, -1), strict=True):
        row["advantage"] = advantage
    found = opening(write_jsonl(tmp_path / "r.jsonl", given))
    assert found["push_removed"]["mean"] == pytest.approx(16 / 3 / 15)
    assert found["push_cancelled"] == 0, "the root holds no token"
    assert found["shared_tokens"]["mean"] == pytest.approx(5 / 9)
    assert found["packing_ratio"] == pytest.approx(49 / 16)
    assert found["sampling_ratio"] == pytest.approx(49 / 19)
    assert (found["change"], found["prompts_counted"]) == ("much", True)
    # Path depths 2, 2, 1, 0; outside the own leaf 2/3, 2/3, 1/2 and 0 of the tokens.
    assert found["sentences"] == [
        "λ-GRPO changes much in this run: it takes 36% off GRPO's push, because 56% of the tokens are shared with "
        "other completions of their group.",
        "The hidden process reward model is moderately deep: a completion passes 1.2 intermediate steps on average, "
        "and 46% of its tokens lie before its own last step; packing would cut the tokens of an update 3.1-fold and "
        "the tree sampler those of sampling 2.6-fold, prompts included.",
    ]


def test_the_push_agrees_with_the_weights_of_the_credit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 2, rng.integers(1, 9)).tolist() for _ in range(6)]
    rewards = rng.random(6).tolist()
    (group,) = RolloutReader([write_jsonl(tmp_path / "r.jsonl", rows(ids, rewards))])
    credit = CREDITS["lambda_grpo"](ProcessTree.build(ids), rewards)
    push = np.abs(credit.advantage)
    expected = (push * (1 - credit.weight)).sum() / push.sum()
    assert analyse([group]).groups["push_removed"][0] == pytest.approx(expected, rel=1e-6)


def test_what_all_share_cancels_and_is_said(tmp_path: Path) -> None:
    """A flat group with a common beginning: λ-GRPO takes half of its push off, and changes nothing by it."""
    found = opening(write_jsonl(tmp_path / "r.jsonl", rows([[5, 6], [5, 7]], [1, 0])))
    assert found["push_removed"]["mean"] == found["push_cancelled"] == pytest.approx(1 / 4)
    assert found["change"] == "nothing"
    assert found["sentences"][0] == (
        "λ-GRPO changes nothing in this run: what it takes off cancels anyway, because it lies on beginnings that all "
        "completions of a group share. It takes 25% off GRPO's push, because 50% of the tokens are shared with other "
        "completions of their group."
    )
    assert (
        "is trivial: no completion passes an intermediate step (what is shared begins all"
        in found["sentences"][1]
    )


@pytest.mark.parametrize(
    ("ids", "begins", "ends"),
    [([[5] * 9 + [6, 7], [5] * 9 + [6, 8], [5] * 9 + [9]], "little in this run: most of what it takes off cancels",
      "of their group."),
     ([[1, *row] for row in BRANCHING], "much in this run: it takes 47% off", "; 21% of the push lies on beginnings "
      "that all completions share, where it cancels anyway.")],
)  # fmt: skip
def test_what_cancels_is_said_first_if_it_is_most(
    tmp_path: Path, ids: list[list[int]], begins: str, ends: str
) -> None:
    """Advantages 2, -1, -1: Σ|a| is 22 + 11 + 10 = 43, of which 9·4·2/3 = 24 cancels and 3/2 does not.

    Advantages 3, -1, -1, -1: Σ|a| is 12 + 4 + 3 + 2 = 21, of which 6·3/4 = 4.5 cancels and 16/3 does not.
    """
    sentence = opening(write_jsonl(tmp_path / "r.jsonl", rows(ids, [1, 0, 0, 0][: len(ids)])))["sentences"][0]
    assert sentence.startswith(f"λ-GRPO changes {begins}")
    assert sentence.endswith(ends)


def test_equal_completions_are_shared_in_a_flat_group(tmp_path: Path) -> None:
    found = opening(write_jsonl(tmp_path / "r.jsonl", rows([[5], [5], [6], [7]], [1, 1, 0, 0])))
    assert found["change"] == "much"
    assert (
        "is trivial: no completion passes an intermediate step (what is shared begins all"
        in found["sentences"][1]
    )
    found = opening(write_jsonl(tmp_path / "s.jsonl", rows([[5], [6], [7]], [1, 0, 0])))
    assert "no completion passes an intermediate step;" in found["sentences"][1]


def test_the_trend_is_said(tmp_path: Path) -> None:
    flat, deep = [[1], [2], [3]], [[1, 2], [1, 3], [4]]
    steps = [
        dict(row, step=step) for step in range(10) for row in rows(deep if step > 4 else flat, [1, 0, 0])
    ]
    found = opening(write_jsonl(tmp_path / "r.jsonl", steps))
    assert found["push_removed"]["first_fifth"] == 0
    # |a| of 2, 1, 1 (in thirds of the spread): Σ|a|·T is 4 + 2 + 1, and (2 + 1)/2 of it is taken off.
    assert found["push_removed"]["last_fifth"] == pytest.approx(1.5 / 7)
    assert "(0% of the push early in training, 21% late)" in found["sentences"][0]


@pytest.mark.parametrize("rewards", [[1.0, 1.0, 1.0, 1.0], [None, None, None, 1.0]])
def test_nothing_is_pushed(tmp_path: Path, rewards: list[float]) -> None:
    found = opening(write_jsonl(tmp_path / "r.jsonl", rows(BRANCHING, rewards)))
    assert found["change"] is None
    assert found["push_removed"]["mean"] is None
    assert found["sentences"][0].startswith(
        "λ-GRPO changes nothing in this run: rewards are equal within every group"
    )


def test_prompts_whose_tokens_nobody_knows(tmp_path: Path) -> None:
    found = opening(write_jsonl(tmp_path / "r.jsonl", rows(BRANCHING, [1, 0, 0, 0])))
    assert (found["prompts_counted"], found["sampling_ratio"]) == (False, None)
    assert found["packing_ratio"] == pytest.approx(9 / 6)
    assert found["sentences"][1].endswith(
        "1.5-fold, prompts not counted, because the file does not tell their tokens."
    )


def test_words_count_prompts_too(tmp_path: Path) -> None:
    """Without ids and tokenizer words are tokens, in prompts as in completions: 2 + 2 words, twice."""
    given = [
        {"group": 0, "prompt": "one two", "completion": f"a {end}", "reward": r}
        for end, r in (("b", 1), ("c", 0))
    ]
    found = opening(write_jsonl(tmp_path / "r.jsonl", given))
    assert found["packing_ratio"] == pytest.approx(8 / 5)
    assert found["sampling_ratio"] == pytest.approx(8 / 6)


def test_completions_without_tokens(tmp_path: Path) -> None:
    found = opening(write_jsonl(tmp_path / "r.jsonl", rows([[], []], [1, 0])))
    assert (
        found["sentences"][1] == "There is no hidden process reward model, because no completion has a token."
    )


@pytest.mark.parametrize(
    ("removed", "depth", "words"),
    [(0.004, 0.5, "next to nothing shallow"), (0.05, 1.0, "little shallow"), (0.06, 2.0, "something moderately deep"),
     (0.3, 3.5, "much deep")],
)  # fmt: skip
def test_the_words(removed: float, depth: float, words: str) -> None:
    means = {
        "groups": 10, "tokens": 100, "unique_tokens": 9.0, "push_removed": removed, "push_cancelled": 0.0,
        "shared_tokens": 0.1, "path_depth": depth, "intermediate_proportion": 0.1, "packing_ratio": math.nan,
        "sampling_ratio": math.nan,
    }  # fmt: skip
    steps = {name: np.array([0.1]) for name in ("push_removed", "shared_tokens")}
    change, model = verdict(means, 1, steps)["sentences"]
    said = f"{change.split(' changes ')[1].split(' in this')[0]} {model.split(' is ')[1].split(':')[0]}"
    assert said == words


def test_training_saves_the_ids_of_prompts(tmp_path: Path) -> None:
    """And prompts of equal text but other ids, of another system prompt say, share no step."""
    rollouts = Rollouts(
        step=0,
        groups=np.array([0, 0]),
        prompts=["p", "p"],
        completions=["a", "a"],
        token_ids=[[5], [5]],
        rewards=np.array([0.0, 1.0]),
        advantages=np.zeros(2),
        prompt_ids=[[1, 2], [1, 3, 4]],
    )
    write_rollouts(tmp_path / "run", rollouts)
    (group,) = RolloutReader([tmp_path / "run"])
    assert [ids.tolist() for ids in group.prompt_ids] == [[1, 2], [1, 3, 4]]
    assert group.prompt_lengths.tolist() == [2, 3]
    assert group.contexts.tolist() == [0, 1]
