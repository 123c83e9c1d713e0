"""`reasoning-gym:NAME`: every data set of the package, its own scorer."""

import json
import sys

import pytest

from lambda_grpo import InputError
from lambda_grpo.tasks import Problem, ReasoningGym, get_task, worker
from lambda_grpo.tasks import reasoning_gym as module

pytest.importorskip("reasoning_gym")

SAMPLE = [
    "ab", "acre", "basic_arithmetic", "chain_sum", "isomorphic_strings", "knights_knaves", "letter_counting",
    "maze", "rearc", "tower_of_hanoi", "word_ladder", "word_sorting",
]  # fmt: skip

# These come without a gold answer: any right one will do, and the scorer works it out.
WITHOUT_GOLD = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}


def restart_worker():
    if worker._shared is not None:
        worker._shared.end()


def copy(problem):
    return Problem(**json.loads(json.dumps({"prompt": problem.prompt, "answer": problem.answer})))


def test_every_data_set_of_the_package_is_listed():
    from reasoning_gym.factory import DATASETS

    assert set(module.data_sets()) == set(DATASETS) - {"composite"}
    assert set(SAMPLE) | WITHOUT_GOLD <= set(module.data_sets())


@pytest.mark.parametrize("name", SAMPLE)
def test_gold_answers_score_1_and_wrong_ones_less(name):
    task = get_task(f"reasoning-gym:{name}")
    for problem in task.problems("train", 5, 0):
        gold = problem.answer["answer"]
        assert task.score(problem, gold) == 1
        assert task.score(problem, f"I think <answer>1</answer>, no: <answer>\n{gold}\n</answer>") == 1
        assert task.score(problem, "<answer>no such answer</answer>") < 1
        assert task.score(problem, "") < 1


@pytest.mark.parametrize("name", ["chain_sum", "isomorphic_strings", "rearc"])
def test_problems_repeat_in_another_process_and_are_scored_from_json(name):
    # isomorphic_strings iterates over sets: without fixed hashing it does not repeat. The entries of rearc
    # do not survive JSON, so it is the puzzle's number that is kept.
    before = get_task(f"reasoning-gym:{name}").problems("test", 4, 7)
    restart_worker()
    task = get_task(f"reasoning-gym:{name}")
    problems = [copy(problem) for problem in before]
    assert [task.score(problem, problem.answer["answer"]) for problem in reversed(problems)] == [1] * 4
    assert task.problems("test", 4, 7) == before
    assert task.problems("test", 4, 8) != before


@pytest.mark.parametrize("name", ["chain_sum", "coin_flip", "tower_of_hanoi"])
def test_no_prompt_is_in_both_splits(name):
    # tower_of_hanoi has few prompts: different seeds alone would not keep its splits apart.
    task = get_task(f"reasoning-gym:{name}")
    splits = {
        split: {p.prompt for seed in (0, 1) for p in task.problems(split, 60, seed)}
        for split in ("train", "test")
    }
    assert splits["train"]
    assert splits["test"]
    assert not splits["train"] & splits["test"]


def test_partial_credit_is_the_packages_own():
    # The base scorer gives len(gold) / len(answer) to an answer that contains the gold one.
    task = get_task("reasoning-gym:letter_counting")
    problem = task.problems("train", 1, 0)[0]
    gold = problem.answer["answer"]
    assert task.score(problem, f"{gold} times") == pytest.approx(len(gold) / len(f"{gold} times"))


def test_a_scorer_that_raises_or_hangs_scores_0(monkeypatch):
    coin_flip = get_task("reasoning-gym:coin_flip")
    assert coin_flip.score(coin_flip.problems("train", 1, 0)[0], "1e999") == 0  # OverflowError inside
    countdown = get_task("reasoning-gym:countdown")
    problem = countdown.problems("train", 1, 0)[0]
    monkeypatch.setattr(module, "SECONDS", 0.3)
    assert countdown.score(problem, "9**9**9**9") == 0
    assert countdown.score(problem, problem.answer["answer"]) == 1


def test_settings_reach_the_data_set_and_wrong_ones_are_refused():
    task = ReasoningGym("chain_sum", min_terms=5, max_terms=5)
    problem = task.problems("train", 1, 0)[0]
    assert sum(sign in "+-" for sign in problem.prompt.split()) == 4
    assert task.score(problem, problem.answer["answer"]) == 1
    with pytest.raises(InputError, match=r"chain_sum: it refuses the settings .*min_termz"):
        ReasoningGym("chain_sum", min_termz=5)
    with pytest.raises(InputError, match="chain_sum: it refuses the settings"):
        ReasoningGym("chain_sum", min_terms=5, max_terms=2)


def test_a_problem_of_another_version_is_refused():
    task = get_task("reasoning-gym:chain_sum")
    problem = task.problems("train", 1, 0)[0]
    other = Problem("State the answer: 1 + 1 =", {**problem.answer, "seed": 1})
    with pytest.raises(InputError, match="is not the problem to score, 'State the answer"):
        task.score(other, "2")


def test_too_few_prompts_for_a_split_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "in_test_split", lambda prompt, one_in: False)
    monkeypatch.setattr(module, "_MOST_MISSES", 50)
    with pytest.raises(InputError, match="50 puzzles in a row have no prompt for the test split, 0 of 3"):
        get_task("reasoning-gym:chain_sum").problems("test", 3, 0)


def test_an_unknown_name_gets_the_nearest_miss():
    with pytest.raises(
        InputError, match="unknown reasoning-gym data set 'chainsum': did you mean 'chain_sum'"
    ):
        get_task("reasoning-gym:chainsum")


def test_without_reasoning_gym_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    module.data_sets.cache_clear()
    with pytest.raises(InputError, match=r"reasoning-gym.*lambda-grpo\[tasks\]"):
        get_task("reasoning-gym:chain_sum")


@pytest.mark.slow
def test_every_data_set_gives_its_own_gold_answers_1():
    """105 data sets. Exactly the five that have no gold answers do not score 1 with them."""
    failing = {}
    for name in module.data_sets():
        task = get_task(f"reasoning-gym:{name}")
        problems = task.problems("train", 3, 0)
        scores = [task.score(problem, str(problem.answer["answer"])) for problem in problems]
        assert all(task.score(problem, "no such answer") < 1 for problem in problems) or name in {
            "game_of_life_halting"  # its scorer gives 1 to any text
        }, name
        if scores != [1, 1, 1]:
            failing[name] = [problem.answer["answer"] for problem in problems]
    assert failing == dict.fromkeys(WITHOUT_GOLD, [None] * 3)


@pytest.mark.slow
def test_puzzles_are_the_same_when_made_alone_in_a_new_worker():
    """Whatever a data set keeps in memory, puzzle 2 is puzzle 2: scoring makes it again from its number."""
    tasks = [get_task(f"reasoning-gym:{name}") for name in module.data_sets()]
    third = {task.name: [task._make(5, index) for index in range(3)][2] for task in tasks}
    restart_worker()
    for task in tasks:
        assert task._make(5, 2) == third[task.name], task.name
