"""Analysis and report without a browser: numbers, tables, sampling, bounds, the command."""

import argparse
import json
import math
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from reference import ReferenceGroup
from rollout_samples import BY_HAND, group_rows, save_tokenizer, write_jsonl, write_run

from lambda_grpo import InputError, ProcessTree, cli
from lambda_grpo.report import ReportOptions, report_command, write_report
from lambda_grpo.report.analysis import analyse
from lambda_grpo.report.content import report_content
from lambda_grpo.report.sample import step_texts
from lambda_grpo.rollouts import RolloutReader


def analysis_of(path, **options):
    return analyse(RolloutReader([path]), **options)


def test_a_group_by_hand(tmp_path):
    # The group of test_flaw_measures.py. Path depths: 2, 2, 1, 0.
    # Outside their leaves lie 2/3, 2/3, 1/2 and 0 of the tokens. Shared: 2 + 2 + 1 + 0 of 9 tokens.
    table = analysis_of(write_jsonl(tmp_path / "r.jsonl", BY_HAND)).groups
    expected = {
        "completions": 4,
        "tokens": 9,
        "unique_tokens": 6,
        "counted": 4,
        "spread": 1,
        "reward": 1.5 / 4,
        "accuracy": 1 / 4,
        "length": 9 / 4,
        "path_depth": 5 / 4,
        "intermediate_proportion": (2 / 3 + 2 / 3 + 1 / 2) / 4,
        "shared_tokens": 5 / 9,
        "flat": 0,
        "best_pushed_down": 1,
        "best_tokens_down": 1,
        "best_share_down_grpo": 1 / 5,
        "best_share_down_lambda": 2 / 23,
        "frequent_share_grpo": 1 / 10,
        "frequent_share_lambda": 2 / 53,
        "effective_terms_grpo": 5,
        "effective_terms_lambda": 2809 / 661,
    }
    assert {name: table[name][0] for name in expected} == pytest.approx(expected)


def test_tied_best_completions_count_by_their_mean(tmp_path):
    # Best are 0 and 3 (reward 1): 0 has one token pushed down, 3 none; downward shares 1/5 and 0.
    rows = [{**row, "reward": r} for row, r in zip(BY_HAND, (1, 0, 0, 1), strict=True)]
    table = analysis_of(write_jsonl(tmp_path / "r.jsonl", rows)).groups
    assert table["best_tokens_down"][0] == pytest.approx(1 / 2)
    assert table["best_share_down_grpo"][0] == pytest.approx(1 / 10)
    assert table["best_pushed_down"][0] == 1


def test_a_flat_group_and_one_of_equal_rewards_define_less(tmp_path):
    rows = [
        {"group": g, "completion": text, "reward": r}
        for g, text, r in [("flat", "a", 1), ("flat", "b", 0), ("even", "a b", 1), ("even", "a c", 1)]
    ]
    table = analysis_of(write_jsonl(tmp_path / "r.jsonl", rows)).groups
    assert table["flat"].tolist() == [1, 1]  # "a" is the root's own step in the second
    assert math.isnan(table["frequent_share_grpo"][0])
    assert table["best_pushed_down"][0] == 0
    assert all(
        math.isnan(table[n][1]) for n in ("best_pushed_down", "best_share_down_grpo", "effective_terms_grpo")
    )


def test_means_agree_with_the_definitions(tmp_path):
    rng = np.random.default_rng(3)
    rows = [row for step in (0, 5) for g in range(3) for row in group_rows(rng, step, g, count=6, length=12)]
    analysis = analysis_of(write_jsonl(tmp_path / "r.jsonl", rows))
    for s, step in enumerate((0, 5)):
        groups = [[r for r in rows if (r["step"], r["group"]) == (step, g)] for g in range(3)]
        references = [ReferenceGroup([r["token_ids"] for r in group]) for group in groups]
        depths = [ref.path_depth(i) for ref in references for i in range(6)]
        proportions = [ref.intermediate_proportion(i) for ref in references for i in range(6)]
        steps = analysis.steps()
        assert steps["path_depth"][s] == pytest.approx(np.mean(depths))
        assert steps["intermediate_proportion"][s] == pytest.approx(np.mean(proportions))
        assert steps["flat"][s] == np.mean([ref.is_flat() for ref in references])
        assert steps["reward"][s] == pytest.approx(np.mean([r["reward"] for r in rows if r["step"] == step]))
        tokens = [(ref, i, t) for ref in references for i in range(6) for t in range(len(ref.completions[i]))]
        shared = [len(ref.process_set(i, t)) > 1 for ref, i, t in tokens]
        assert steps["shared_tokens"][s] == pytest.approx(np.mean(shared))


def test_the_table_of_nodes_holds_step_rewards_and_advantages(tmp_path):
    nodes = analysis_of(write_jsonl(tmp_path / "r.jsonl", BY_HAND)).nodes
    assert nodes["size"].tolist() == [4, 3, 2, 1, 1, 1, 1]
    np.testing.assert_allclose(nodes["reward"], [3 / 8, 1 / 3, 1 / 2, 1, 0, 0, 1 / 2])
    np.testing.assert_allclose(nodes["advantage"], [0, -1 / 3, 1 / 2, 3, -2, -2, 1], atol=1e-12)
    assert set(nodes["group"]) == {"hand"}


def test_correct_column_outranks_the_threshold(tmp_path):
    rows = [{"group": 0, "completion": t, "reward": 5, "correct": c} for t, c in (("a", True), ("b", False))]
    assert analysis_of(write_jsonl(tmp_path / "r.jsonl", rows)).groups["accuracy"][0] == 0.5
    for row in rows:
        del row["correct"]
    assert analysis_of(write_jsonl(tmp_path / "r.jsonl", rows), correct_at=6).groups["accuracy"][0] == 0


# Texts of steps


@pytest.mark.parametrize("source", ["tokens", "characters", "tokenizer"])
def test_texts_along_a_path_join_to_the_completion(tmp_path, source):
    rng = np.random.default_rng(0)
    rows = group_rows(rng, 8, 0, count=6)
    for row in rows:
        words = row["completion"][1:].split(" ")
        row["completion"] = " ".join(words)
        if source == "tokens":
            row["tokens"] = [f" {word}" if i else word for i, word in enumerate(words)]
    reader = RolloutReader([write_jsonl(tmp_path / "r.jsonl", rows)])
    group = next(iter(reader))
    tokeniser = _Decoder(rows) if source == "tokenizer" else None
    tree = ProcessTree.build(group.token_ids)
    texts, exact = step_texts(group, tree, tokeniser)
    assert exact is (source != "characters")
    for i, text in enumerate(group.texts):
        path, node = [], int(tree.leaf[i])
        while node >= 0:
            path.append(texts[node])
            node = int(tree.parent[node])
        assert "".join(reversed(path)) == text


class _Decoder:
    """Decodes ids by the words they stand for, as a tokenizer does."""

    def __init__(self, rows):
        pairs = [zip(row["token_ids"], row["completion"].split(" "), strict=True) for row in rows]
        self.words = {i: word for pair in pairs for i, word in pair}

    def decode(self, ids):
        return " ".join(self.words[i] for i in ids)


@pytest.mark.parametrize(
    ("completions", "expected"),
    [
        # é is c3 a9, è is c3 a8: the step they share ends within the character.
        (["aéb".encode(), "aèb".encode()], ["a", "èb", "éb"]),
        # The first ends there, with half a character; the second goes on.
        (["aé".encode()[:-1], "aéb".encode()], ["a", "éb"]),
        ([b"a", "aé".encode()[:-1]], ["a", "\ufffd"]),
    ],
)
def test_a_character_cut_by_a_step_belongs_to_the_next(tmp_path, completions, expected):
    class Bytes:
        def decode(self, ids):
            return bytes(ids).decode("utf-8", "replace")

    rows = [{"group": 0, "token_ids": list(each), "reward": 0} for each in completions]
    group = next(iter(RolloutReader([write_jsonl(tmp_path / "r.jsonl", rows)])))
    texts, _ = step_texts(group, ProcessTree.build(group.token_ids), Bytes())
    assert texts == expected


# The report


def test_numbers_in_the_twin(tmp_path):
    written = write_report([write_jsonl(tmp_path / "r.jsonl", BY_HAND)], tmp_path / "r.html")
    content = json.loads(written.json.read_text())
    assert content["schema"] == "lambda-grpo/report/1"
    (group,) = content["groups"]
    assert group["nodes"]["text"] == ["", "one ", "two ", "three", "four", "five", "six"]
    assert group["nodes"]["size"] == [4, 3, 2, 1, 1, 1, 1]
    assert group["nodes"]["advantage"] == pytest.approx([0, -1 / 3, 1 / 2, 3, -2, -2, 1], abs=1e-6)
    # |λ|·A and A, as in test_flaw_measures.py; shares of 10 and of 53/6.
    assert group["nodes"]["push_grpo"] == pytest.approx([0, -1, 1, 3, -2, -2, 1])
    assert group["nodes"]["push_lambda"] == pytest.approx([0, -1 / 3, 1 / 2, 3, -2, -2, 1])
    assert group["nodes"]["share_grpo"][:3] == pytest.approx([0, 1 / 10, 1 / 10])
    assert group["nodes"]["share_lambda"][:3] == pytest.approx([0, 2 / 53, 3 / 53])
    assert content["runs"][0]["means"]["best_share_down_lambda"] == pytest.approx(2 / 23, abs=1e-6)
    assert content["runs"][0]["flat_groups"] == 0


def test_the_sample_is_bounded_and_says_so(tmp_path):
    run = write_run(tmp_path / "run", steps=6, groups=10)
    written = write_report([run], tmp_path / "r.html", ReportOptions(groups=7))
    assert (written.groups, written.shown) == (60, 7)
    few = write_report([run], tmp_path / "few.html", ReportOptions(groups=7, text_bytes=20_000))
    content = json.loads(few.json.read_text())
    assert content["groups_total"] == 60
    assert content["groups_cut"] + len(content["groups"]) == 7
    assert sum(len(json.dumps(group)) for group in content["groups"]) < 22_000


def test_runs_side_by_side_show_the_same_drawn_groups(tmp_path):
    runs = [write_run(tmp_path / name, steps=5, groups=20, seed=i) for i, name in enumerate("ab")]
    written = write_report(runs, tmp_path / "r.html", ReportOptions(groups=40))
    groups = json.loads(written.json.read_text())["groups"]
    keys = {run: {(g["step"], g["group"]) for g in groups if g["run"] == run} for run in "ab"}
    assert len(keys["a"] & keys["b"]) >= 8


def test_left_out_rows_are_counted_on_the_page_and_by_the_command(tmp_path, capsys):
    rows = [*BY_HAND, {"group": "alone", "completion": "x", "reward": 1}]
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    with pytest.raises(InputError, match=r"r\.jsonl, row 5: group 'alone' of step 0 has one"):
        write_report([path], tmp_path / "r.html")
    parser = argparse.ArgumentParser()
    report_command.add_arguments(parser)
    args = parser.parse_args([str(path), "-o", str(tmp_path / "r.html"), "--skip-bad"])
    assert report_command.run(args) == 0
    out, err = capsys.readouterr()
    assert "1 group measured, 1 shown in full" in out
    assert "left out: 1 row (in them 1 whole group) and 0 files:" in err
    assert json.loads((tmp_path / "r.json").read_text())["left_out"]["rows"] == 1


def test_nothing_left_to_report(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"group": 0, "completion": "x", "reward": 1}])
    with pytest.raises(InputError, match=r"is left to report on: .*has one completion"):
        write_report([path], tmp_path / "r.html", ReportOptions(skip_bad=True))


@pytest.mark.parametrize("out", ["report", "report.json"])
def test_bad_output_name(tmp_path, out):
    with pytest.raises(InputError, match=r"expected a name that ends in \.html"):
        write_report([tmp_path], tmp_path / out)


def test_the_twin_replaces_an_earlier_report_and_no_other_file(tmp_path):
    page, twin = tmp_path / "r.html", tmp_path / "r.json"
    for content in (json.dumps(BY_HAND), ""):
        twin.write_text(content)
        with pytest.raises(
            InputError, match=r"r\.json: .* would overwrite this file.* choose another name .*-o"
        ):
            write_report([tmp_path / "nowhere"], page)  # refused before anything is read
        assert twin.read_text() == content
    twin.unlink()
    rollouts = [write_jsonl(tmp_path / "rollouts.jsonl", BY_HAND)]
    first = write_report(rollouts, page).json.read_text()
    assert write_report(rollouts, page).json.read_text() == first
    twin.write_text(first.replace("report/1", "report/0"))
    assert write_report(rollouts, page).json.read_text() == first


@pytest.mark.parametrize("groups", [0, -1])
def test_a_report_without_groups_is_refused(tmp_path, capsys, groups):
    path = write_jsonl(tmp_path / "r.jsonl", BY_HAND)
    out = tmp_path / "r.html"
    assert cli.main(["report", str(path), "-o", str(out), "--groups", str(groups)]) == 2
    assert f"groups: got {groups}, expected at least 1" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("least", ["nan", "inf"])
def test_a_reward_to_be_right_at_that_is_no_number_is_refused(tmp_path, capsys, least):
    path = write_jsonl(tmp_path / "r.jsonl", BY_HAND)
    out = tmp_path / "r.html"
    assert cli.main(["report", str(path), "-o", str(out), "--correct_at", least]) == 2
    assert f"correct_at: got {least}, expected a finite number" in capsys.readouterr().err
    assert not out.exists()


def test_the_page_is_self_contained(tmp_path):
    html = write_report([write_jsonl(tmp_path / "r.jsonl", BY_HAND)], tmp_path / "r.html").html.read_text()
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[^>]*>", html) == [
        '<link rel="icon" href="data:,">'
    ]
    assert "default-src 'none'" in html
    assert len(html) < 200_000
    assert list(tmp_path.glob(".*")) == [], "nothing half-written is left"


def test_the_light_install_is_enough_and_starts_quickly(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", BY_HAND)
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'trl', 'pandas'): sys.modules[name] = None\n"
        "import argparse; from lambda_grpo.report import report_command\n"
        "parser = argparse.ArgumentParser(); report_command.add_arguments(parser)\n"
        f"report_command.run(parser.parse_args([{str(path)!r}, '-o', {str(tmp_path / 'r.html')!r}]))\n"
    )
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.perf_counter() - begin < 5  # about 0.7 s alone; room for a busy machine


def test_a_tokenizer_that_does_not_fit_gives_no_texts(tmp_path):
    ids = {"ab": [0, 1], "abc": [0, 1, 2]}
    rows = [{"group": 0, "completion": t, "token_ids": i, "reward": len(i) - 2} for t, i in ids.items()]
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    own, other = save_tokenizer(tmp_path / "own", "abc"), save_tokenizer(tmp_path / "other", "xyzabc")
    for tokenizer, exact, notes in ((own, True, 0), (other, False, 1), (None, False, 0)):
        content = report_content([path], ReportOptions(tokenizer=tokenizer))
        assert len(content["notes"]) == notes
        (group,) = content["groups"]
        assert "z" not in "".join(group["nodes"]["text"])
        assert group["texts_exact"] is exact


def test_tokens_of_two_kinds_in_one_run_are_said(tmp_path):
    ids = [{"group": 0, "completion": c, "token_ids": [i], "reward": i} for i, c in enumerate("ab")]
    words = [{"group": 1, "completion": c, "reward": i} for i, c in enumerate("ab")]
    (tmp_path / "run").mkdir()
    write_jsonl(tmp_path / "run" / "1.jsonl", ids)
    assert report_content([tmp_path / "run"], ReportOptions())["notes"] == []
    write_jsonl(tmp_path / "run" / "2.jsonl", words)
    (note,) = report_content([tmp_path / "run"], ReportOptions())["notes"]
    sources = "token ids in the file in some groups, from words in others"
    assert note.startswith(f"run: tokens come from {sources}")
