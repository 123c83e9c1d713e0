"""`jsonl:` and `hub:`: reading rows, splitting them, scoring with math-verify under a time limit."""

import json
import logging
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lambda_grpo import InputError
from lambda_grpo.tasks import Maths, Problem, get_task, read_jsonl
from lambda_grpo.tasks.data_files import ProblemRows
from lambda_grpo.tasks.maths import gold_text

pytest.importorskip("math_verify")

SUMS = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(60)]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def maths(rows, **options):
    return Maths(ProblemRows("rows", {"train": rows, "test": rows}, lambda split, i: f"row {i}"), **options)


def score(gold, completion):
    return maths(SUMS).score(Problem("", gold_text(gold)), completion)


# Scoring.
@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ("42", [r"\boxed{42}", "so it is 42.", "$42$", r"\boxed{42.0}", r"\boxed{\frac{84}{2}}"],
         [r"\boxed{41}", "", "no idea", r"\boxed{}", r"\boxed{42, 43}", r"42, no: \boxed{41}", r"\boxed{42"]),
        (42, ["42", r"The final answer is 41. I hope it is. No: \boxed{42}"], ["24"]),
        (r"\frac{1}{2}", ["0.5", "1/2", r"the answer is $\frac12$"], ["1", "2", "0.25"]),
        ("(1, 2]", [r"\boxed{(1,2]}"], [r"\boxed{(1,2)}", "2"]),
        ("x^2 + 1", [r"\boxed{1 + x^2}"], [r"\boxed{x^2}", r"\boxed{x^2 + 2}"]),
        ("1,234", ["1234", r"\boxed{1,234}"], ["1.234"]),
        (r"So $x = 3$ and the answer is $\boxed{7}$.", ["7"], ["3"]),
        ("48 / 2 = 24 in May.\n48 + 24 = 72\n#### 72", ["72"], ["24"]),
        ("That is all from 1 to 2.\n#### (1, 2]", [r"\boxed{(1,2]}"], ["2"]),
        (r"1.6 \times 10^{-19}", [r"\boxed{1.6 \cdot 10^{-19}}", r"\boxed{16 \times 10^{-20}}"],
         ["0", r"\boxed{-1.6 \times 10^{-19}}", r"\boxed{1.5 \times 10^{-19}}", r"\boxed{9.1 \times 10^{-31}}"]),
        (r"0.05\%", [r"\boxed{0.0005}", r"\boxed{0.05\%}"], [r"\boxed{0.0006}"]),
        ("0.000333", [r"\boxed{\frac{333}{1000000}}"], [r"\boxed{0.0003}"]),
        ("Friday", [r"\boxed{Friday}", r"\boxed{\text{friday}}"], [r"\boxed{dairyF}", r"\boxed{Monday}"]),
    ],
    ids=str,
)  # fmt: skip
def test_scores_by_hand(gold, right, wrong):
    assert {text: score(gold, text) for text in right} == dict.fromkeys(right, 1)
    assert {text: score(gold, text) for text in wrong} == dict.fromkeys(wrong, 0)


@given(st.fractions(max_denominator=99, min_value=-999, max_value=999))
@settings(max_examples=40, deadline=None)
def test_a_fraction_equals_itself_and_no_neighbour(value):
    latex = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    assert score(latex, rf"Hence \boxed{{{latex}}}.") == 1
    assert score(latex, rf"Hence \boxed{{\frac{{{value.numerator + 1}}}{{{value.denominator}}}}}.") == 0


@given(st.text(max_size=60))
@settings(max_examples=40, deadline=None)
def test_any_text_can_be_scored(text):
    assert score("-12345", text) == 0


HANGS = r"\boxed{9^{9^{9^{9}}}}"


def test_a_hanging_completion_scores_0_in_time_also_in_a_thread():
    task, scores = maths(SUMS, seconds=0.3), []
    gold = Problem("", gold_text("2"))
    assert task.score(gold, r"\boxed{2}") == 1  # the worker is up
    started = time.monotonic()
    scores.append(task.score(gold, HANGS))
    thread = threading.Thread(target=lambda: scores.append(task.score(gold, HANGS)))
    thread.start()
    thread.join(20)
    assert scores == [0, 0]
    assert time.monotonic() - started < 5
    assert task.score(gold, r"\boxed{2}") == 1


# Gold answers that do not parse.
def test_rows_without_a_readable_gold_answer_are_skipped_and_counted(caplog):
    bad = ["", r"\boxed{", r"\frac{1}{}", None, ["1"], True, "all of them", {"value": 1}]
    rows = SUMS + [{"question": f"Bad {i}?", "answer": gold} for i, gold in enumerate(bad)]
    task = maths(rows)
    with caplog.at_level(logging.WARNING):
        both = [p for split in ("train", "test") for p in task.problems(split, 10**3, 0)]
    assert not [p for p in both if p.prompt.startswith("Bad")]
    assert len(task.unparsable) == len(bad)
    assert task.unparsable["row 66"] == "all of them"
    assert "math-verify cannot parse" in caplog.text


def test_a_gold_answer_that_hangs_is_skipped(monkeypatch):
    # No text is known to hang math-verify's parser for sure, so something else hangs in its place.
    monkeypatch.setattr("lambda_grpo.tasks.maths._parses", _hang)
    task = maths([{"prompt": "4+1=", "answer": "60"}], seconds=0.3)  # of the test split
    with pytest.raises(InputError, match="could not parse the gold answers of 1"):
        task.problems("test", 1, 0)


def _hang(gold):
    time.sleep(60)


def test_no_readable_gold_answer_at_all_is_an_error():
    task = maths([{"prompt": f"{n}?", "answer": ""} for n in range(40)])
    with pytest.raises(InputError, match="no usable problem for the train split among 40 rows"):
        task.problems("train", 5, 0)


# Splits and counts.
def test_a_file_of_one_row_says_how_rows_are_divided():
    task = maths([{"prompt": "1+1=", "answer": "2"}])  # of the train split
    assert len(task.problems("train", 3, 0)) == 3
    with pytest.raises(InputError, match="checksum of the prompt .* about one in eight .* more rows"):
        task.problems("test", 1, 0)


def test_train_goes_round_again_in_a_new_order_and_test_gives_all_there_is():
    task = maths(SUMS)
    test = task.problems("test", 10**3, 0)
    size = len(SUMS) - len(test)
    train = task.problems("train", 2 * size + 5, 0)
    rounds = [[p.prompt for p in train[i : i + size]] for i in (0, size)]
    assert 0 < len(test) < 20
    assert set(rounds[0]) == set(rounds[1])
    assert len(set(rounds[0])) == size
    assert rounds[0] != rounds[1]
    assert len(train) == 2 * size + 5
    assert not {p.prompt for p in train} & {p.prompt for p in test}
    assert task.problems("train", 20, 0) == task.problems("train", 20, 0) != task.problems("train", 20, 1)


def test_a_source_with_a_test_split_keeps_it_and_train_loses_its_prompts():
    rows = ProblemRows("rows", {"train": SUMS, "test": SUMS[50:]}, lambda split, i: f"{split} row {i}")
    task = Maths(rows)
    test = {p.prompt for p in task.problems("test", 100, 0)}
    assert test == {row["question"] for row in SUMS[50:]}
    assert {p.prompt for p in task.problems("train", 100, 0)} == {row["question"] for row in SUMS[:50]}


def test_chat_prompts_are_handed_on(tmp_path):
    chats = [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{n}+1?"}]
        for n in range(40)
    ]
    rows = [{"prompt": chat, "solution": rf"It is \boxed{{{n + 1}}}."} for n, chat in enumerate(chats)]
    task = get_task(f"jsonl:{write(tmp_path / 'chat.jsonl', rows)}")
    problem = task.problems("train", 1, 0)[0]
    assert problem.prompt in chats
    assert task.score(problem, str(chats.index(problem.prompt) + 1)) == 1
    assert task.score(problem, "-1") == 0


# Columns and files.
@pytest.mark.parametrize(
    ("prompt", "answer"), [("prompt", "answer"), ("problem", "solution"), ("question", "answer")]
)
def test_column_pairs(tmp_path, prompt, answer):
    path = write(
        tmp_path / "data.jsonl", [{prompt: f"{n}+1?", answer: str(n + 1), "level": 1} for n in range(9)]
    )
    problem = get_task(f"jsonl:{path}").problems("train", 1, 0)[0]
    assert problem.answer == rf"\boxed{{{int(problem.prompt[:-3]) + 1}}}"


GOOD = '{"prompt": "1+1?", "answer": "2"}'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD, "{oops}"], r"data.jsonl, line 2: not JSON .*'\{oops\}'"),
        ([GOOD, "", GOOD], "data.jsonl, line 2: not JSON"),
        ([GOOD, "[1]"], "data.jsonl, line 2: expected .*got '\\[1\\]'"),
        ([""], "data.jsonl: the file is empty"),
        (['{"prompt": "1+1?", "gold": "2"}'], "gold answer .answer, solution.; it has prompt, gold"),
        (["{}"], "it has none"),
        ([GOOD, '{"prompt": "1+2?"}'], "data.jsonl, line 2: no column 'answer'; it has prompt"),
        ([GOOD, '{"prompt": " ", "answer": "1"}'], "line 2, column 'prompt': expected a text .* got ' '"),
        (
            [GOOD, '{"prompt": [{"text": "1"}], "answer": "1"}'],
            "line 2, column 'prompt': expected a text or a list",
        ),
        ([GOOD, '{"prompt": [], "answer": "1"}'], r"got '\[\]'"),
    ],
)
def test_bad_files_are_refused_with_the_place(tmp_path, lines, message):
    path = write(tmp_path / "data.jsonl", lines)
    with pytest.raises(InputError, match=message):
        [get_task(f"jsonl:{path}").problems(split, 10, 0) for split in ("train", "test")]


def test_a_missing_file_and_one_that_is_not_text_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.jsonl: cannot be read: .*No such file"):
        get_task(f"jsonl:{tmp_path}/nowhere.jsonl")
    (tmp_path / "data.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        get_task(f"jsonl:{tmp_path}/data.jsonl")


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=8))
@settings(deadline=None, max_examples=40)
def test_every_prompt_survives_the_file(tmp_path_factory, prompts):
    # Line separators inside a JSON string do not end a line.
    lines = [json.dumps({"prompt": prompt, "answer": 1}, ensure_ascii=False) for prompt in prompts]
    path = tmp_path_factory.mktemp("rows") / "data.jsonl"
    try:
        path.write_text("\n".join(lines), encoding="utf-8", newline="\n")
    except UnicodeEncodeError:
        return
    rows = read_jsonl(str(path))
    assert [row["prompt"] for row in rows.parts["train"]] == prompts


def test_without_math_verify_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(InputError, match=r"math-verify.*lambda-grpo\[tasks\]"):
        maths(SUMS)


def test_an_older_antlr_is_refused(monkeypatch):
    monkeypatch.setattr("lambda_grpo.tasks.maths.version", {"antlr4-python3-runtime": "4.9.3"}.get)
    with pytest.raises(InputError, match=r"got 4\.9\.3, .* expected 4\.13\.2: pip install"):
        maths(SUMS)


# Data sets of the Hub, by way of local folders.
@pytest.fixture
def hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()

    def folder(name, **files):
        for file, rows in files.items():
            write(tmp_path / name / f"{file}.jsonl", rows)
        return f"hub:{tmp_path / name}"

    return folder


def sizes(task):
    return [len({str(p.prompt) for p in task.problems(split, 100, 0)}) for split in ("train", "test")]


def test_hub_splits(hub):
    name = hub("two", train=SUMS, test=SUMS[50:])
    assert sizes(get_task(name)) == [50, 10]
    assert sum(sizes(get_task(f"{name}:train"))) == 60
    assert sum(sizes(get_task(f"{name}:train[:20]"))) == 20
    with pytest.raises(InputError, match=r"unknown split of hub:.* 'tset': did you mean 'test'"):
        get_task(f"{name}:tset")
    with pytest.raises(InputError, match="expected hub:ID"):
        get_task(f"{name}:a:b:c")


def test_hub_without_a_test_split_is_divided_and_a_lone_one_stays_whole(hub):
    assert sum(sizes(get_task(hub("train_only", train=SUMS, validation=SUMS)))) == 60
    lone = get_task(hub("lone", test=SUMS))
    assert len(lone.problems("test", 100, 0)) == 60
    with pytest.raises(InputError, match="has a test split only"):
        lone.problems("train", 100, 0)


def test_hub_configs(hub, tmp_path):
    name = hub("many", a=SUMS, b=SUMS[:9])
    configs = "".join(f"- config_name: {c}\n  data_files: {c}.jsonl\n" for c in "ab")
    (tmp_path / "many" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert sum(sizes(get_task(f"{name}:b"))) == 9
    assert sum(sizes(get_task(f"{name}:a:train[:30]"))) == 30
    with pytest.raises(InputError, match=r"Config name is missing(.|\n)*\['a', 'b'\]"):
        get_task(name)
    with pytest.raises(InputError, match=r"unknown config of hub:.* 'c'"):
        get_task(f"{name}:c")


def test_hub_refuses_what_it_cannot_use(hub, tmp_path):
    with pytest.raises(InputError, match="it has text, label"):
        get_task(hub("other", train=[{"text": "a", "label": 0}]))
    with pytest.raises(InputError, match="data set on the Hub that can be reached, or a local folder"):
        get_task(f"hub:{tmp_path}/nowhere")


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"datasets.*lambda-grpo\[tasks\]"):
        get_task("hub:any/thing")
