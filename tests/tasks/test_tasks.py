"""Tasks by name, the two made here, a user's own, and what importing them may not import."""

import importlib
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lambda_grpo import InputError
from lambda_grpo.errors import LambdaGRPOError
from lambda_grpo.tasks import Problem, Sequences, ThinkingSums, get_task, list_tasks
from lambda_grpo.tasks.answers import final_answer
from lambda_grpo.tasks.sequences import count_sequences
from lambda_grpo.tasks.task import draw_problems, in_test_split

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_task.py"


def prompts_in_both_splits(task, count=300):
    """The prompts that two splits share, whatever their seeds."""
    train = {str(p.prompt) for seed in (0, 1) for p in task.problems("train", count, seed)}
    return train & {str(p.prompt) for seed in (0, 1, 2) for p in task.problems("test", count, seed)}


@pytest.mark.parametrize("name", ["thinking-sums", "sequences", f"{EXAMPLE}:Backwards"])
def test_problems_repeat_differ_by_seed_and_are_never_in_both_splits(name):
    task = get_task(name)
    assert task.problems("train", 50, 3) == task.problems("train", 50, 3)
    assert task.problems("train", 50, 3) != task.problems("train", 50, 4)
    assert len(task.problems("test", 50, 3)) == 50
    assert not prompts_in_both_splits(task)


def test_a_task_that_ignores_the_split_is_caught():
    class Careless(Sequences):
        def problems(self, split, count, seed):
            return super().problems("train", count, seed)

    assert prompts_in_both_splits(Careless())


def test_about_one_prompt_in_n_is_for_testing():
    share = {n: sum(in_test_split(f"{i}", n) for i in range(4000)) / 4000 for n in (2, 8)}
    assert share == pytest.approx({2: 1 / 2, 8: 1 / 8}, rel=0.1)


@given(st.text())
def test_the_order_of_a_chat_turns_keys_does_not_matter(text):
    turn = {"content": text, "role": "user"}
    assert in_test_split([turn]) == in_test_split([dict(reversed(turn.items()))])


def test_final_answer():
    assert final_answer(" 5\n") == "5"
    assert final_answer("<think>1</think><answer> 5 </answer>.") == "5"
    assert final_answer("<answer>1</answer><answer>2</answer>") == "2"
    assert final_answer("<answer>a <answer>b</answer>") == "b"
    assert final_answer("<answer>5") == "<answer>5"  # never closed: the whole completion
    assert final_answer("5</answer>") == "5</answer>"


# Sequences. By hand: three integers, last − first 2, sum 7: a, a+b, a+2 with 3a + b + 2 = 7, 0 ≤ b ≤ 2, so
# b = 2, a = 1: 1, 3, 3 and no other. Four integers, spread 2, sum 6: inner pair of {0,1,2} with sum ≡ 0
# modulo 4: (0,0) → a = 1: 1,1,1,3; (2,2) → a = 0: 0,2,2,2. Two integers with spread 1: sums are odd.
@pytest.mark.parametrize(
    ("n", "d", "total", "count"),
    [(3, 2, 7, 1), (4, 2, 6, 2), (2, 1, 4, 0), (2, 1, 5, 1), (1, 0, -9, 1), (1, 1, 3, 0), (5, 0, 10, 1)],
)
def test_count_by_hand(n, d, total, count):
    assert count_sequences(n, d, total) == count


def sequences_by_trying(n, d, total):
    """All of them, from the definition: every first member that could do, every non-decreasing rest."""
    firsts = range((total - n * d) // n - 1, total // n + 2)
    return [
        values
        for first in firsts
        for values in itertools.combinations_with_replacement(range(first, first + d + 1), n)
        if values[0] == first and values[-1] == first + d and sum(values) == total
    ]


def test_count_equals_trying_all():
    for n, d in itertools.product(range(1, 6), range(5)):
        for total in range(-7, 8):
            assert count_sequences(n, d, total) == len(sequences_by_trying(n, d, total))


def unique_for_every_sum(max_n, max_d):
    pairs = itertools.product(range(1, max_n + 1), range(max_d + 1))
    return [(n, d) for n, d in pairs if all(count_sequences(n, d, total) == 1 for total in range(n))]


def test_with_two_or_more_members_only_3_and_2_is_unique_for_every_sum():
    assert [pair for pair in unique_for_every_sum(30, 30) if pair[0] >= 2] == [(3, 2)]
    assert unique_for_every_sum(1, 5) == [(1, 0)]
    # By trying: every other pair fails at one of the sums 0 … n−1, which stand for all residues.
    for n, d in itertools.product(range(2, 6), range(5)):
        counts = [len(sequences_by_trying(n, d, total)) for total in range(n)]
        assert (set(counts) == {1}) == ((n, d) == (3, 2))


def test_a_sequence_needs_a_member():
    with pytest.raises(InputError, match="got 0"):
        count_sequences(0, 0, 0)


def wanted(n, d, total):
    return Problem("", {"n": n, "d": d, "S": total})


@pytest.mark.parametrize(
    "text", ["1, 3, 3", "1 3 3", "[1,3,3]", "( 1,\n3, 3 )", "so <answer>1,3,3</answer>."]
)
def test_a_right_sequence_scores_1(text):
    assert Sequences().score(wanted(3, 2, 7), text) == 1


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("2, 1, 4", "order"), ("1, 2, 3", "sum"), ("2, 2, 3", "spread"), ("3, 4", "length"), ("", "nothing"),
        ("the answer is 1, 3, 3", "text around"), ("1, 3, 3.", "full stop"), ("1, 3, 3, 3", "length"),
        ("1,,3,3", "no number"), ("[1,3,3", "bracket"), ("1;3;3", "separator"), ("1.0, 3, 3", "no integer"),
        ("١, ٣, ٣", "other digits"), ("9" * 5000, "very long"), ("1-3-3", "separator"), ("-", "no number"),
    ],
)  # fmt: skip
def test_a_planted_fault_scores_0(text, fault):
    assert Sequences().score(wanted(3, 2, 7), text) == 0, fault


@given(st.integers(2, 7), st.integers(0, 9), st.integers(-99, 99), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_score_agrees_with_the_definition(n, d, first, rng):
    values = sorted([first, first + d, *(rng.randint(first, first + d) for _ in range(n - 2))])
    problem = wanted(n, d, sum(values))
    assert Sequences().score(problem, ", ".join(map(str, values))) == 1
    changed = list(values)
    changed[rng.randrange(n)] += rng.choice([-1, 1])
    assume(changed != values)
    assert Sequences().score(problem, ", ".join(map(str, changed))) == 0


def test_every_sequence_problem_can_be_solved():
    for problem in Sequences().problems("test", 40, 0):
        n, d, total = (problem.answer[key] for key in ("n", "d", "S"))
        assert str(n) in problem.prompt
        assert f"sum is {total} " in problem.prompt
        inner = next(
            inner
            for inner in itertools.combinations_with_replacement(range(d + 1), n - 2)
            if (total - d - sum(inner)) % n == 0
        )
        first = (total - d - sum(inner)) // n
        values = [first, *(first + b for b in inner), first + d]
        assert Sequences().score(problem, " ".join(map(str, values))) == 1
        assert json.loads(json.dumps(problem.answer)) == problem.answer


def test_thinking_sums_by_hand():
    task, problem = ThinkingSums(), Problem("7+2+9+4=", 22)
    assert task.score(problem, ".22") == task.score(problem, "?9,18,22") == 1
    assert [task.score(problem, text) for text in (".21", "22", ".22,", "?9,18", "", ".022.", "?,22")] == [
        0
    ] * 7
    assert task.traits("?9,18,22") == {"thinking": 1}


# Names.
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sequnces", "unknown task 'sequnces': did you mean 'sequences'"),
        ("reasoning_gym:chain_sum", "Did you mean reasoning-gym:chain_sum"),
        ("JSONL:data.jsonl", "Did you mean jsonl:data.jsonl"),
        ("jsnl:data.jsonl", "Did you mean jsonl:data.jsonl"),
        ("reasoning-gym", "did you mean 'reasoning-gym:NAME'"),
        ("jsonl:", "did you mean 'jsonl:PATH'"),
        ("no_such_module:MyTask", "there is no module 'no_such_module'"),
        ("my_task.py", "task 'my_task.py': name the class too: my_task.py:MyTask"),
        ("nowhere/my_task.py:MyTask", "there is no file 'nowhere/my_task.py'"),
        (f"{EXAMPLE}:Forwards", "has no 'Forwards'"),
        (
            "json:JSONDecoder",
            "expected the methods problems, score, traits .* type JSONDecoder without problems",
        ),
    ],
)
def test_wrong_names_say_what_is_wrong(name, message):
    with pytest.raises(InputError, match=message):
        get_task(name)


def test_list_names_every_task_with_a_line():
    pytest.importorskip("reasoning_gym")
    listed = list_tasks()
    assert {"thinking-sums", "sequences", "jsonl:PATH", "reasoning-gym:chain_sum"} <= set(listed)
    assert all(line.strip() and "\n" not in line for line in listed.values())


def test_list_without_reasoning_gym_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    assert "lambda-grpo[tasks]" in list_tasks()["reasoning-gym:NAME"]


# A user's own task.
def test_the_example_runs_and_scores():
    task = get_task(f"{EXAMPLE}:Backwards")
    problem = Problem("Spell backwards: abc\n", "cba")
    assert [task.score(problem, text) for text in ("cba", " cba\n", "abc", "")] == [1, 1, 0, 0]
    shown = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, check=True).stdout
    assert [line.rsplit(" ", 1)[1] for line in shown.splitlines()] == ["1.0", "0.0", "1.0", "0.0"]


def test_a_dotted_path_names_a_class_a_function_or_a_task(tmp_path, monkeypatch):
    (tmp_path / "my_tasks_here.py").write_text(
        "from lambda_grpo.tasks import Sequences\n"
        "class Mine(Sequences): pass\n"
        "def make(): return Mine()\n"
        "ready = Mine()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for attribute in ("Mine", "make", "ready"):
        assert type(get_task(f"my_tasks_here:{attribute}")).__name__ == "Mine"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"task Own: problems\('test', 4, 42\) returned no problem, expected 4"),
        (["1+1="] * 4, r"problems\('test', 4, 42\) returned a str as #0, expected a Problem"),
        ([Problem("1+1=", "2"), ("2+2=", "4")], "returned a tuple as #1, expected a Problem"),
        (None, "returned a NoneType, expected a list of Problem"),
        ("1+1=", "returned a str, expected a list of Problem"),
    ],
)
def test_what_a_users_task_returns_is_checked(given, message):
    class Own(Sequences):
        def problems(self, split, count, seed):
            return given

    with pytest.raises(InputError, match=message):
        draw_problems(Own(), "test", 4, 42)


BROKEN = """
class NeedsMore:
    def __init__(self, size): pass

class Raises:
    def __init__(self): self.size = {}["size"]

class Draws:
    def problems(self, split, count, seed): return [1 / 0]
    def score(self, problem, completion): return 0
    def traits(self, completion): return {}
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "NeedsMore",
            r"NeedsMore': it is called without arguments, and failed: TypeError: .* argument: 'size'$",
        ),
        ("Raises", r"Raises': .* failed: KeyError: 'size' \(.*my_task\.py, line 6\)$"),
        (
            "Draws",
            r"task Draws: problems\('train', 3, 0\) failed: ZeroDivisionError: .* \(.*my_task\.py, line 9\)$",
        ),
    ],
)
def test_an_error_in_a_users_task_is_one_line_that_says_where(tmp_path, name, message):
    path = tmp_path / "my_task.py"
    path.write_text(BROKEN)
    with pytest.raises(LambdaGRPOError, match=message) as raised:
        draw_problems(get_task(f"{path}:{name}"), "train", 3, 0)
    assert isinstance(raised.value.__cause__, TypeError | KeyError | ZeroDivisionError)


def test_an_error_inside_a_users_module_is_left_alone(tmp_path):
    (tmp_path / "broken.py").write_text("import a_module_that_is_not_there\n")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        get_task(f"{tmp_path / 'broken.py'}:MyTask")


# The import boundary.
_LIST_LOADED = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
heavy = ["torch", "trl", "verl", "transformers", "datasets", "reasoning_gym", "math_verify", "sympy"]
print(",".join(name for name in heavy if name in sys.modules))
"""


def heavy_imports(package, folder):
    command = [sys.executable, "-c", _LIST_LOADED, package]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_tasks_import_nothing_heavy():
    source = Path(importlib.import_module("lambda_grpo").__file__).parents[1]
    assert heavy_imports("lambda_grpo.tasks", source) == ""


def test_a_heavy_import_is_caught(tmp_path):
    (tmp_path / "torch.py").touch()
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "__init__.py").touch()
    (tmp_path / "planted" / "task.py").write_text("import torch\n")
    assert heavy_imports("planted", tmp_path) == "torch"


def test_nothing_here_depends_on_the_global_random_state():
    random.seed(1)
    first = Sequences().problems("train", 5, 0)
    random.seed(2)
    assert Sequences().problems("train", 5, 0) == first
