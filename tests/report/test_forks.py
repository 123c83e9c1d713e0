"""Forks in the report: the column `block`, sampled and coincidental sharing, value differences."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import assert_survived
from rollout_samples import write_jsonl

from lambda_grpo import InputError, ProcessTree
from lambda_grpo.branching import BranchPlan
from lambda_grpo.report import report_command, write_report
from lambda_grpo.report.forks import draws, forks_of, sharing
from lambda_grpo.rollouts import Block, Group, RolloutReader
from lambda_grpo.rollouts.writing import Rollouts, write_rollouts

# Two roots that begin alike by coincidence, each forked after token 2. The parts of the second draw the same end.
TWO_ROOTS = [
    ([5, 6, 7], [0, 0, 2], 1.0),
    ([5, 6, 8], [0, 0, 3], 0.0),
    ([5, 9, 1], [1, 1, 4], 0.5),
    ([5, 9, 1], [1, 1, 5], 0.0),
]


def rows(given: Any = TWO_ROOTS, **more: Any) -> list[dict[str, Any]]:
    return [
        {"group": 0, "token_ids": ids, "block": blocks, "reward": reward, **more}
        for ids, blocks, reward in given
    ]


def group_of(tmp_path: Path, given: list[dict[str, Any]]) -> Group:
    (group,) = RolloutReader([write_jsonl(tmp_path / "r.jsonl", given)])
    return group


def test_by_hand(tmp_path: Path) -> None:
    group = group_of(tmp_path, rows())
    assert group.blocks == [
        Block(0, -1, 0, 2, (0, 1)),
        Block(2, 0, 2, 3, (0,)),
        Block(3, 0, 2, 3, (1,)),
        Block(1, -1, 0, 2, (2, 3)),
        Block(4, 3, 2, 3, (2,)),
        Block(5, 3, 2, 3, (3,)),
    ]
    tree = ProcessTree.build(group.token_ids)
    # Drawn: 2 + 2 before the forks, 4 after. A fork shares 4 · 2 tokens. By coincidence: "5" in all four
    # completions, "1" in two.
    assert sharing(group, tree) == {"drawn_tokens": 8, "sampled_sharing": 8, "coincidental_sharing": 6}
    # Steps: "5"; "6", its leaves; "9 1", of which "9" was drawn once and "1" twice.
    assert [span for span in draws(group, tree) if span] == [[[0, 1, 2]], [[1, 2, 1]], [[1, 2, 1], [2, 3, 2]]]
    first, second = forks_of(group)
    assert (first.depth, first.block, first.parts, first.rewards) == (2, 0, [(0,), (1,)], [1.0, 0.0])
    assert (first.difference, second.difference) == (1.0, 0.5)


def test_random_plans_against_the_definition(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        plan = BranchPlan((2, 4), (2, int(rng.integers(2, 4))))
        count = 2 * plan.factors[0] * plan.factors[1]
        numbers = plan.blocks(count, 7)
        drawn = rng.integers(0, 2, (numbers.max() + 1, 7))
        ids = drawn[numbers, np.arange(7)]
        given = [(ids[i].tolist(), numbers[i].tolist(), 0) for i in range(count)]
        group = group_of(tmp_path, rows(given))
        tree = ProcessTree.build(group.token_ids)
        together = np.array(
            [[(numbers[:, t] == numbers[i, t]).sum() for t in range(7)] for i in range(count)]
        )
        larger = tree.set_sizes() > together
        assert sharing(group, tree) == {
            "drawn_tokens": sum(len(set(numbers[:, t].tolist())) for t in range(7)),
            "sampled_sharing": (together > 1).sum(),
            "coincidental_sharing": larger.sum(),
        }
        for node, spans in enumerate(draws(group, tree)):
            members = tree.order[tree.first[node] : tree.first[node] + tree.size[node]]
            told = [count for start, end, count in spans for _ in range(start, end)]
            span = range(tree.start[node], tree.end[node]) if tree.size[node] > 1 else ()
            assert told == [len(set(numbers[members, t].tolist())) for t in span]


def test_a_completion_that_ended_before_its_fork_does_not_fork(tmp_path: Path) -> None:
    group = group_of(tmp_path, rows([([5], [0], 1), ([5], [0], 1), ([6, 7], [1, 2], 0), ([6, 8], [1, 3], 1)]))
    assert [(fork.depth, fork.parts) for fork in forks_of(group)] == [(1, [(2,), (3,)])]
    # Where the file leaves out the token that ended one, it is a part without tokens.
    group = group_of(tmp_path, rows([([5], [0], 1), ([5, 6], [0, 1], 0)]))
    assert [(fork.parts, fork.rewards) for fork in forks_of(group)] == [([(1,), (0,)], [0.0, 1.0])]


def test_unscored_parts_have_no_value(tmp_path: Path) -> None:
    given = [(ids, blocks, None if i == 1 else reward) for i, (ids, blocks, reward) in enumerate(TWO_ROOTS)]
    first, second = forks_of(group_of(tmp_path, rows(given)))
    assert (first.rewards, first.difference, second.difference) == ([1.0, None], None, 0.5)


def test_the_report_tells_them_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", rows())
    parser = argparse.ArgumentParser()
    report_command.add_arguments(parser)
    assert report_command.run(parser.parse_args([str(path), "-o", str(tmp_path / "r.html")])) == 0
    sentence = (
        "Completions fork on purpose after token 2: 67% of the tokens were drawn, 67% are shared because a fork drew "
        "them once, and 50% are shared with other blocks by coincidence; the parts of a fork differ by 0.75 in mean "
        "reward."
    )
    assert f"r.jsonl: {sentence}\n" in capsys.readouterr().out
    content = json.loads((tmp_path / "r.json").read_text())
    run = content["runs"][0]["branching"]
    assert (run["sentence"], run["tokens"], run["drawn_tokens"]) == (sentence, 12, 8)
    assert run["depths"] == [{"depth": 2, "forks": 2, "difference": 0.75}]
    assert content["groups"][0]["branching"]["forks"][1] == {
        "depth": 2,
        "block": 1,
        "parts": [[2], [3]],
        "rewards": [0.5, 0.0],
        "difference": 0.5,
    }


def test_a_run_of_which_some_groups_fork_says_so(tmp_path: Path) -> None:
    chains = [{**row, "group": 1} for row in rows()]
    for row in chains:
        del row["block"]
    written = write_report([write_jsonl(tmp_path / "r.jsonl", rows() + chains)], tmp_path / "r.html")
    (sentence,) = written.forks
    assert sentence.startswith(
        "r.jsonl: In 1 of 2 groups completions fork on purpose after token 2: 67% of the"
    )


def test_a_run_without_the_column_stays_as_it_was(tmp_path: Path) -> None:
    """And the column changes nothing but what it adds."""
    with_column, without = rows(prompt="p"), rows(prompt="p")
    for row in without:
        del row["block"]
    contents = []
    for given in (with_column, without):
        written = write_report([write_jsonl(tmp_path / "r.jsonl", given)], tmp_path / "r.html")
        contents.append(json.loads(written.json.read_text()))
    for part in ("runs", "groups"):
        del contents[0][part][0]["branching"]
    assert contents[0] == contents[1]
    assert "branching" not in json.dumps(contents[1])


def test_training_writes_what_the_report_reads(tmp_path: Path) -> None:
    ids, blocks, rewards = (list(column) for column in zip(*TWO_ROOTS, strict=True))
    rollouts = Rollouts(
        step=0,
        groups=np.zeros(4, int),
        prompts=["p"] * 4,
        completions=["c"] * 4,
        token_ids=ids,
        rewards=np.array(rewards),
        advantages=np.zeros(4),
        blocks=blocks,
    )
    write_rollouts(tmp_path / "run", rollouts)
    (group,) = RolloutReader([tmp_path / "run"])
    assert group.blocks == group_of(tmp_path, rows()).blocks


BROKEN = {
    "no list": ("x", "row 2: block is 'x', expected a list of integers"),
    "texts": (["a", "b", "c"], "row 2: block is ['a', 'b', 'c'], expected a list of integers"),
    "truths": ([True, False, True], "expected a list of integers from 0"),
    "below zero": ([0, 0, -1], "expected a list of integers from 0"),
    "too large": ([0, 0, 2**31], "expected a list of integers from 0"),
    "too short": ([0, 0], "row 2: block has 2 numbers for 3 tokens, expected one for each"),
    "too long": ([0, 0, 3, 3], "row 2: block has 4 numbers for 3 tokens"),
    "other tokens": ([0, 0, 2], "row 2: block 2 holds tokens 2 to 2 here, and other ones in an earlier row"),
    "other places": ([0, 3, 3], "row 2: block 0 holds tokens 0 to 0 here, and other ones"),
    "one block twice": ([0, 1, 0], "row 2: block 0 holds tokens 0 to 0 here"),
    "another parent": ([9, 0, 3], "row 2: block 0 holds tokens 1 to 1 here"),
}


@pytest.mark.parametrize(("value", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_blocks_are_refused_or_counted(tmp_path: Path, value: Any, message: str) -> None:
    given = rows()
    given[1]["block"] = value
    path = write_jsonl(tmp_path / "r.jsonl", given)
    with pytest.raises(InputError) as caught:
        list(RolloutReader([path]))
    assert message in str(caught.value)
    reader = RolloutReader([path], skip_bad=True)
    assert list(reader) == []
    assert (reader.left_out.groups, reader.left_out.rows) == (1, 4)
    assert not assert_survived([path], tmp_path / "r.html")


def test_a_block_of_two_prompts_is_refused(tmp_path: Path) -> None:
    given = rows()
    for row, prompt in zip(given, "abcc", strict=True):
        row["prompt"] = prompt
    with pytest.raises(InputError, match="row 2: block 0 holds tokens 0 to 1 here"):
        group_of(tmp_path, given)


@pytest.mark.parametrize("change", ["text only", "a row without"])
def test_blocks_that_cannot_be_placed_are_passed_over_with_a_note(tmp_path: Path, change: str) -> None:
    given = rows(completion="one two three")
    for row in given:
        if change == "text only":
            del row["token_ids"]
    given[-1]["block"] = None if change == "a row without" else [1]
    reader = RolloutReader([write_jsonl(tmp_path / "r.jsonl", given)])
    (group,) = reader
    assert list(group.blocks) == []
    assert reader.notes == [
        "r.jsonl: forks are not shown for some groups: the column block numbers the policy's tokens, and these groups "
        "have no token_ids, or a row without blocks."
    ]


@pytest.mark.parametrize("empty", [None, []])
def test_an_empty_column_says_nothing(tmp_path: Path, empty: Any) -> None:
    given = [{**row, "block": empty, "token_ids": []} for row in rows()]
    reader = RolloutReader([write_jsonl(tmp_path / "r.jsonl", given)])
    assert [list(group.blocks) for group in reader] == [[]]
    assert reader.notes == []


def test_a_column_of_that_name_in_other_formats_is_their_own(tmp_path: Path) -> None:
    verl = [{"input": "p", "output": end, "score": 1.0, "block": "B7"} for end in "ab"]
    assert len(list(RolloutReader([write_jsonl(tmp_path / "r.jsonl", verl)]))) == 1
