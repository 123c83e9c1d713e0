"""Several runs side by side, without a browser: what is matched, counted, told, and refused."""

import json
import shutil
from random import Random

import numpy as np
import pytest
from hostile import assert_survived, random_rows
from rollout_samples import write_jsonl, write_run

from lambda_grpo import InputError, cli
from lambda_grpo.report import ReportOptions, write_report
from lambda_grpo.report.content import report_content
from lambda_grpo.report.final_figures import difference, last_steps, mean_of
from lambda_grpo.report.matching import match
from lambda_grpo.report.page import render


def group(step: int, name: object, prompt: str, rewards: list[float | None], **more: object) -> list[dict]:
    """Completions "a", "b", … of one prompt."""
    return [
        {"step": step, "group": name, "prompt": prompt, "completion": chr(97 + i), "reward": reward, **more}
        for i, reward in enumerate(rewards)
    ]


def content_of(*paths: object, **options: object) -> dict:
    return report_content(list(paths), ReportOptions(**options))


@pytest.fixture
def two(tmp_path):
    """Runs a and b: of four prompts at two steps they share p, q and s; by most completions a alone gets p
    right, b alone q, and neither s at step 1."""
    a = [
        *group(0, 0, "p", [1, 1, 0]),  # most
        *group(0, 1, "q", [1, 0, 0]),  # any
        *group(1, 0, "r", [1, 1, 1]),  # met by a only
        *group(1, 1, "s", [0, 0, 0]),
    ]
    b = [
        *group(0, 0, "q", [1, 1, 1]),
        *group(0, 1, "p", [0, 0, 0]),
        *group(1, 0, "s", [0, 0, 1]),
        *group(1, 1, "t", [1, 1, 1]),
    ]
    return [write_jsonl(tmp_path / name / "r.jsonl", rows).parent for name, rows in (("a", a), ("b", b))]


# What belongs together


def test_groups_are_matched_by_prompt_and_step_then_by_prompt():
    #        0    1    2    3    4    5    6    7
    runs = [0, 0, 0, 0, 1, 1, 1, 1]
    steps = [0, 0, 0, 2, 0, 0, 1, 3]
    keys = [b"p", b"p", b"q", b"z", b"p", b"x", b"p", b"q"]
    # Twice p at step 0 of the first run: the first with 4; the second with p at step 1 (6). q: 2 and 7.
    assert match(runs, steps, keys).tolist() == [[0, 4], [1, 6], [2, 7]]
    assert match(runs, steps, [b""] * 8).shape == (0, 2), "groups without a prompt are not matched"


def test_three_runs_need_not_all_meet_a_problem():
    found = match([0, 1, 2, 2], [0, 0, 0, 5], [b"p", b"p", b"q", b"p"])
    assert found.tolist() == [[0, 1, -1]]


def test_who_got_what_right_by_hand(two):
    said = content_of(*two)["comparison"]
    (pair,) = said["pairs"]
    assert (pair["met"], pair["scored"], pair["other_step"]) == (3, 3, 0)
    counts = {rule: [pair[rule][key] for key in ("both", "only", "neither")] for rule in ("most", "any")}
    assert counts["most"] == [0, [1, 1], 1]  # p, q; s
    assert counts["any"] == [1, [1, 1], 0]  # q in both; p in a only, s in b only
    assert pair["most"]["parts"] == [
        {"from": 0, "to": 0, "problems": 2, "only": [1, 1]},
        {"from": 1, "to": 1, "problems": 1, "only": [0, 0]},
    ]
    shown = {problem["prompt"]: [met["right"] for met in problem["groups"]] for problem in said["problems"]}
    assert shown == {"p": [2, 0], "q": [1, 3], "s": [0, 1]}
    # 2/3 apart: q and p, q the later of the table; then s, 1/3 apart.
    assert [problem["prompt"] for problem in said["problems"]] == ["q", "p", "s"]
    assert len({problem["id"] for problem in said["problems"]}) == 3
    assert "a alone got 1 right, b alone 1, both 0, neither 1." in said["answers"][1]


def test_the_same_problem_has_the_same_name_in_a_grown_run(two):
    before = content_of(*two)["comparison"]["problems"]
    rows = group(2, 0, "u", [1, 0, 0])
    for folder in two:
        write_jsonl(folder / "s.jsonl", rows)
    after = content_of(*two)["comparison"]["problems"]
    assert {one["id"] for one in before} < {one["id"] for one in after}


def test_unscored_groups_are_met_but_neither_right_nor_wrong(tmp_path):
    paths = [
        write_jsonl(
            tmp_path / f"{name}.jsonl", [*group(0, 0, "p", [1, 1]), *group(0, 1, "q", rewards, advantage=0)]
        )
        for name, rewards in (("a", [1, 0]), ("b", [None, None]))
    ]
    (pair,) = content_of(*paths)["comparison"]["pairs"]
    assert (pair["met"], pair["scored"], pair["most"]["both"]) == (2, 1, 1)


# How they ended


def test_final_figures_by_hand():
    assert last_steps([np.arange(20), np.arange(5, 15)]).tolist() == [13, 14]
    assert last_steps([np.array([1, 2]), np.array([3])]).tolist() == []
    table = {
        "reward": np.array([0.0, 1.0, np.nan, 0.5]),
        "scored": np.array([1, 3, 0, 2]),
        "path_depth": np.array([1.0, 2.0, 3.0, np.nan]),
        "counted": np.array([1, 1, 2, 0]),
    }
    rows = np.arange(4)
    # Over completions: (0·1 + 1·3 + 0.5·2) / 6; the unscored group counts nothing.
    assert mean_of(table, rows, "reward") == {"mean": 4 / 6, "low": None, "high": None, "groups": 3}
    assert mean_of(table, rows, "path_depth")["mean"] == (1 + 2 + 2 * 3) / 4
    assert mean_of(table, rows[2:3], "reward") is None
    pairs = np.array([[0, 1], [1, 3], [0, 2]])
    assert difference(table, pairs, "reward") == {"mean": 0.25, "low": None, "high": None, "problems": 2}


def test_one_problem_is_singular(tmp_path):
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", group(0, 0, "p", [1, 0])) for name in "ab"]
    said = content_of(*paths)
    first, second, *_ = said["comparison"]["answers"]
    assert ", on the same problem, too few for an interval: " in first
    assert second.startswith("Of the 1 problem that both met in training, ")
    assert any("hold the same completions in the only group that both have" in note for note in said["notes"])


@pytest.mark.parametrize(
    ("lift", "words"), [(0.2, "b.jsonl is ahead of a.jsonl"), (0.0, "no run is clearly ahead")]
)
def test_a_difference_on_the_same_problems_has_an_interval(tmp_path, lift, words):
    rng = np.random.default_rng(0)
    paths = []
    for name, more in (("a", 0.0), ("b", lift)):
        rows = [
            row
            for step in range(10)
            for g in range(20)
            for row in group(step, g, f"{step} {g}", (np.random.default_rng(step * 99 + g).random(4) + more + 0.2 * rng.random(4)).tolist())
        ]  # fmt: skip
        paths.append(write_jsonl(tmp_path / f"{name}.jsonl", rows))
    said = content_of(*paths)["comparison"]
    assert said["window"] == [8, 9]
    reward = said["figures"]["training"][0]
    _, apart = reward["differences"]
    assert apart["problems"] == 40
    assert apart["mean"] == pytest.approx(reward["runs"][1]["mean"] - reward["runs"][0]["mean"])
    assert apart["low"] < apart["mean"] < apart["high"]
    alone = reward["runs"][0]
    assert apart["high"] - apart["low"] < alone["high"] - alone["low"], "pairing makes the interval narrower"
    assert said["answers"][0].startswith("In steps 8 to 9, on the same 40 problems, ")
    assert words in said["answers"][0]


def test_a_difference_is_between_last_steps_of_both(tmp_path):
    """Run a met p at step 0, b met it at step 4, which is the last of both."""
    paths = []
    for name, first, last in (("a", "p", "x"), ("b", "y", "p")):
        rows = [*group(0, 0, first, [1, 0]), *group(4, 0, last, [1, 1])]
        paths.append(write_jsonl(tmp_path / f"{name}.jsonl", rows))
    said = content_of(*paths)["comparison"]
    assert (said["window"], said["pairs"][0]["met"], said["pairs"][0]["other_step"]) == ([4, 4], 1, 1)
    assert said["figures"]["training"][0]["differences"] == [None, None]


def test_runs_of_unequal_length_are_compared_where_both_are(tmp_path):
    short, long = (write_run(tmp_path / f"{n}", steps=n, groups=3, seed=0) for n in (5, 10))
    content = content_of(short, long)
    assert content["comparison"]["window"] == [4, 4]
    assert any(
        "The runs end at different steps: 5 at step 4, 10 at step 9." in note for note in content["notes"]
    )


def evaluation(mean: float) -> dict:
    estimate = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
    return {"sampled_accuracy": estimate, "mean_reward": estimate, "greedy_accuracy": {"mean": None}}


def test_what_the_run_folders_hold_is_shown(tmp_path):
    runs = [write_run(tmp_path / name, steps=2, groups=3) for name in ("a", "b")]
    (runs[0] / "results.json").write_text(
        json.dumps({"before": evaluation(0.25), "after": evaluation(0.5) | {"pass_at": {"4": {"mean": 1, "low": 1, "high": 1}}}})
    )  # fmt: skip
    rows = [{"step": 0, "eval_reward": 0.25}, {"step": 1, "reward": 3}, {"step": 2, "eval_reward": 0.5}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (runs[0] / "metrics.jsonl").write_text(text + '{"step": 4, "eval_rewa')
    said = content_of(*runs)["comparison"]
    assert said["validation"] == {"run": ["a", "a"], "step": [0, 2], "eval_reward": [0.25, 0.5]}
    after = {figure["measure"]: figure["runs"] for figure in said["figures"]["after"]}
    assert set(after) == {"sampled_accuracy", "pass@4"}, (
        "what is no number is passed over, as is what repeats"
    )
    assert after["sampled_accuracy"] == [{"mean": 0.5, "low": 0.4, "high": 0.6}, None]
    assert said["figures"]["before"][0]["runs"][0]["mean"] == 0.25
    assert "After training, on the test problems: sampled accuracy of a 50% [40%, 60%]." in said["answers"]


@pytest.mark.parametrize(
    ("results", "told"),
    [
        ('{"after": {"sampled_accuracy": {"mean": 0.5', 1),
        ("[" * 5000, 1),
        ("\x00", 1),
        ('"x"', 0),
        ('{"after": []}', 0),
        ('{"after": {"pass_at": 3, "mean_reward": {"mean": 1e999, "low": 0, "high": 0}}}', 0),
    ],
)
def test_half_written_or_strange_records_are_passed_over(tmp_path, results, told):
    runs = [write_run(tmp_path / name, steps=1, groups=2) for name in ("a", "b")]
    (runs[0] / "results.json").write_text(results)
    (runs[0] / "metrics.jsonl").write_text('{"eval_reward": 1}\n{"step": "x", "eval_reward": 1}\n["eval_"]\n')
    content = content_of(*runs)
    assert content["comparison"]["figures"]["after"] == []
    assert content["comparison"]["validation"]["step"] == []
    assert sum(note.startswith("a: results.json cannot be used: ") for note in content["notes"]) == told


def test_runs_of_different_tasks_are_told(tmp_path):
    runs = [write_run(tmp_path / name, steps=1, groups=2) for name in ("a", "b")]
    for run, task in zip(runs, ("sums", "gsm8k"), strict=True):
        (run / "results.json").write_text(json.dumps({"settings": {"task": task}}))
    assert any("different tasks (a on sums, b on gsm8k)" in note for note in content_of(*runs)["notes"])
    (runs[1] / "results.json").write_text(json.dumps({"settings": {"task": ["sums"]}}))
    assert not any("different tasks" in note for note in content_of(*runs)["notes"])


def test_records_that_are_no_text_are_passed_over(tmp_path):
    runs = [write_run(tmp_path / name, steps=1, groups=2) for name in ("a", "b")]
    (runs[1] / "metrics.jsonl").write_bytes(b"\xff")
    assert any(note.startswith("b: metrics.jsonl cannot be used: ") for note in content_of(*runs)["notes"])


# What is shown in full


def test_both_groups_of_a_problem_are_on_the_page(tmp_path):
    runs = [write_run(tmp_path / name, steps=10, groups=20, seed=seed) for seed, name in enumerate("ab")]
    content = content_of(*runs, groups=7)
    shown = {(one["run"], one["step"], one["group"]) for one in content["groups"]}
    both = [
        one
        for one in content["comparison"]["problems"]
        if all(
            (name, met["step"], met["group"]) in shown for name, met in zip("ab", one["groups"], strict=True)
        )
    ]
    assert len(both) >= 7
    assert len(content["groups"]) <= 3 * 7
    gaps = [
        abs(a["right"] - b["right"]) for a, b in (one["groups"] for one in content["comparison"]["problems"])
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert both[0] is content["comparison"]["problems"][0], "the furthest apart is shown"
    for one in content["groups"]:
        assert one["completions"] == len(one["rewards"]) == 8


def test_each_run_is_shown_with_its_own_tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    paths = []
    for name, words in (("a", {"yes": 0, "no": 1}), ("b", {"ja": 0, "nein": 1})):
        rows = [{"step": 0, "group": 0, "prompt": "p", "token_ids": [i], "reward": i} for i in (0, 1)]
        folder = write_jsonl(tmp_path / name / "rollouts" / "r.jsonl", rows).parents[1]
        (folder / "tokenizer").mkdir()
        tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "no")).save(
            str(folder / "tokenizer/tokenizer.json")
        )
        paths.append(folder)
    content = content_of(*paths)
    texts = {one["run"]: sorted(text for text in one["nodes"]["text"] if text) for one in content["groups"]}
    assert texts == {"a": ["no", "yes"], "b": ["ja", "nein"]}
    alone = [text for one in content_of(paths[0])["groups"] for text in one["nodes"]["text"]]
    assert {"no", "yes"} <= set(alone), "a run by itself too"
    assert any(note.startswith("The runs have different tokenizers: lengths,") for note in content["notes"])
    (paths[1] / "tokenizer/tokenizer.json").write_text("{")
    assert len(content_of(*paths)["groups"]) == 2, "one that cannot be loaded is left away"


# Bad input


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a", "a"], "a: named twice; each run is read once"),
        (["a", "other=a"], "a: named twice"),
        (["a", "a/r.jsonl"], r"r\.jsonl is named twice, it is in .*a too"),
        (["a", "gone"], "gone: no such file or folder"),
        (["a", "b=gone"], r"gone: no such file or folder \(b=gone names it 'b'\)"),
        (["a", "runs/x=gone"], "runs/x=gone: no such file or folder"),
        (["a", "empty"], "empty: holds no rollouts"),
    ],
)
def test_runs_that_are_named_twice_or_missing_are_refused(two, tmp_path, monkeypatch, paths, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        write_report(paths, "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_run_without_rewards_has_no_part_in_who_got_what_right(tmp_path):
    paths = [
        write_jsonl(tmp_path / f"{name}.jsonl", [row for g in range(12) for row in group(0, g, f"{g}", rewards, advantage=0)])
        for name, rewards in (("a", [1, 0]), ("b", [None, None]))
    ]  # fmt: skip
    content = content_of(*paths)
    assert any(note.startswith("b.jsonl: no completion has a reward") for note in content["notes"])
    assert content["comparison"]["pairs"][0]["scored"] == 0
    assert content["comparison"]["answers"] == ["In step 0 b.jsonl has no rewards."]
    figures = {figure["measure"]: figure["runs"] for figure in content["comparison"]["figures"]["training"]}
    assert figures["accuracy"][1] is None
    assert figures["length"][1] is not None


def test_files_without_rewards_are_refused_by_name(tmp_path):
    good = write_jsonl(tmp_path / "a.jsonl", group(0, 0, "p", [1, 0]))
    rows = [{key: value for key, value in row.items() if key != "reward"} for row in group(0, 0, "p", [1, 0])]
    with pytest.raises(InputError, match=r"b\.jsonl, row 1: .* lacks only 'reward'"):
        content_of(good, write_jsonl(tmp_path / "b.jsonl", rows))


def test_a_killed_run_with_a_half_written_file(tmp_path):
    runs = [write_run(tmp_path / name, steps=3, groups=2) for name in ("a", "b")]
    last = runs[1] / "rollouts" / "step-000002-rank-0.parquet"
    last.write_bytes(last.read_bytes()[:200])
    with pytest.raises(
        InputError, match=r"step-000002-rank-0\.parquet: is not a whole Parquet file.*--skip_bad"
    ):
        content_of(*runs)
    content = content_of(*runs, skip_bad=True)
    assert content["left_out"]["files"] == 1
    assert any("a at step 2, b at step 1" in note for note in content["notes"])
    assert content["comparison"]["pairs"][0]["met"] == 4


def test_a_run_of_which_nothing_can_be_used_is_told(tmp_path):
    good = write_jsonl(tmp_path / "a.jsonl", group(0, 0, "p", [1, 0]))
    bad = write_jsonl(tmp_path / "b.jsonl", group(0, 0, "p", [1]))
    content = content_of(good, bad, skip_bad=True)
    assert "comparison" not in content
    assert "b.jsonl: none of its groups can be used, so this run is not shown." in content["notes"]


def test_runs_that_share_no_prompt_are_told(tmp_path):
    paths = [write_jsonl(tmp_path / f"{n}.jsonl", group(0, 0, f"only {n}", [1, 0])) for n in "ab"]
    content = content_of(*paths)
    assert any(note.startswith("The runs share no prompt") for note in content["notes"])
    said = content["comparison"]
    assert (said["problems_total"], said["problems"]) == (0, [])
    assert said["answers"] == [
        "In step 0 a.jsonl and b.jsonl met no problem in common. Their own means: accuracy, a.jsonl's is 50% and "
        "b.jsonl's is 50%."
    ]
    assert said["figures"]["training"][0]["differences"] == [None, None]


def test_runs_without_prompts_are_told(tmp_path):
    paths = [write_jsonl(tmp_path / f"{n}.jsonl", group(0, 0, "", [1, 0])) for n in "ab"]
    notes = content_of(*paths)["notes"]
    assert any(note.startswith("a.jsonl and b.jsonl: the files hold no prompts") for note in notes)


def test_runs_without_a_common_step(tmp_path):
    paths = [write_jsonl(tmp_path / f"{step}.jsonl", group(step, 0, "p", [1, 0])) for step in (3, 7)]
    said = content_of(*paths)["comparison"]
    assert said["window"] is None
    assert (said["pairs"][0]["met"], said["pairs"][0]["other_step"]) == (1, 1)
    assert said["figures"]["training"][0]["runs"][1]["mean"] == 0.5


@pytest.mark.parametrize("how", ["origin", "prompt ids", "none"])
def test_mixed_tokens_are_told(tmp_path, how):
    rows = [group(0, 0, "p", [1, 0], prompt_ids=[1, 2]) for _ in "ab"]
    for run in rows:
        for i, row in enumerate(run):
            row["token_ids"] = [i]
    if how == "origin":
        for row in rows[1]:
            del row["token_ids"]
    elif how == "prompt ids":
        for row in rows[1]:
            row["prompt_ids"] = [7]
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", run) for name, run in zip("ab", rows, strict=True)]
    told = [note for note in content_of(*paths)["notes"] if "do not compare" in note]
    start = {
        "origin": "What counts as a token differs (a.jsonl: token ids",
        "prompt ids": "1 of the shared prompts",
    }
    assert [note[: len(start[how])] for note in told] == ([start[how]] if how in start else [])


def test_a_copy_of_a_run_is_told(tmp_path):
    run = write_run(tmp_path / "a", steps=2, groups=3)
    shutil.copytree(run, tmp_path / "b")
    copies = "a and b hold the same completions in all 6 groups"
    assert any(note.startswith(copies) for note in content_of(run, tmp_path / "b")["notes"])
    other = write_run(tmp_path / "c", steps=2, groups=3, seed=1)
    assert not any("hold the same completions" in note for note in content_of(run, other)["notes"])


def test_rewards_that_never_count_as_right_are_told(tmp_path):
    paths = [write_jsonl(tmp_path / f"{n}.jsonl", group(0, 0, "p", [0.5, 0.25])) for n in "ab"]
    assert sum("--correct_at" in note for note in content_of(*paths)["notes"]) == 2
    assert not any("--correct_at" in note for note in content_of(*paths, correct_at=0.5)["notes"])


@pytest.mark.parametrize("seed", range(12))
def test_hostile_runs_are_compared_or_refused(tmp_path, seed):
    random = Random(seed)
    paths = [
        write_jsonl(tmp_path / f"{n}<b>.jsonl", random_rows(random)) for n in range(random.randint(2, 3))
    ]
    assert_survived(paths, tmp_path / "r.html")


# One run, the command, the notebook


def test_one_run_is_reported_as_before(two, tmp_path, capsys):
    content = content_of(two[0])
    assert "comparison" not in content
    page = render(content)
    both = render(content_of(*two))
    for name in ("compare-title", "const Finals", "pair-cards", ".who-bar"):
        assert name in both
        assert name not in page
    assert cli.main(["report", str(two[0]), "-o", str(tmp_path / "r.html")]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_the_command_says_what_came_out(two, tmp_path, capsys):
    out = tmp_path / "r.html"
    assert cli.main(["report", f"old={two[0]}", f"new={two[1]}", "-o", str(out)]) == 0
    shown = capsys.readouterr().out
    twin = json.loads(out.with_suffix(".json").read_text())
    assert [run["name"] for run in twin["runs"]] == ["old", "new"]
    for answer in twin["comparison"]["answers"]:
        assert answer in shown
    assert "old alone got 1 right, new alone 1" in shown


def test_a_folder_of_runs_opens_with_one_path(two):
    content = content_of(two[0].parent)
    assert [run["name"] for run in content["runs"]] == ["a", "b"]
    assert content["comparison"]["pairs"][0]["met"] == 3


def test_a_group_that_is_gone_when_it_is_read_again_is_left_out(two, monkeypatch):
    from lambda_grpo.report import content as module

    first = module._reader
    calls = []

    def once(paths, options):
        calls.append(paths)
        return first(paths, options) if len(calls) == 1 else iter(())

    monkeypatch.setattr(module, "_reader", once)
    content = content_of(*two)
    assert len(calls) == 2
    assert len(content["groups"]) == 8  # those of the sample, which the first reading kept
