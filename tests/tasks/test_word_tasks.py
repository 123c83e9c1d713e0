"""`word-sums` and `largest`: what they ask, what they score, what ends an answer."""

import re

import pytest

from lambda_grpo import InputError
from lambda_grpo.tasks import Problem, get_task
from lambda_grpo.tasks.task import before_stop

SUMS = get_task("word-sums")


def test_a_word_problem_and_its_worked_examples_are_right():
    for problem in SUMS.problems("train", 50, 0) + SUMS.problems("test", 50, 0):
        *examples, asked = problem.prompt.split("\n\n")
        has, buys, gives = map(int, re.findall(r"\d+", asked))
        assert problem.answer == has + buys - gives > 0
        assert asked.endswith("now?\nAnswer:")
        assert len(examples) == 3
        for example in examples:
            question, answer = example.split("\nAnswer: ")
            has, buys, gives = map(int, re.findall(r"\d+", question))
            left = has + buys - gives
            assert (
                answer
                == f"{has} + {buys} = {has + buys}, {has + buys} - {gives} = {left}. The answer is {left}."
            )


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        (" 12 + 7 = 19, 19 - 6 = 13. The answer is 13.", 1),
        (" The answer is 13.\n\nQuestion: Ben has 9 pens.", 1),
        (" 13", 1),
        (" The answer is 12.\n13", 0),
        ("\n13", 0),  # the line was empty
        (" 12 + 7 = 19", 0),
        ("", 0),
    ],
)
def test_the_end_of_the_line_ends_the_answer(completion, reward):
    assert SUMS.score(Problem("", 13), completion) == reward
    assert SUMS.score(Problem("", 13), before_stop(completion, SUMS.stop)) == reward


def test_what_a_chat_layer_and_an_engine_read():
    assert SUMS.raw_text
    assert SUMS.stop == ("\n",)
    assert not getattr(get_task("largest"), "raw_text", False)
    assert getattr(get_task("largest"), "stop", ()) == ()


def test_difficulty_is_the_largest_number():
    """The first number runs from 3 to 8, the others from 1 to 8 / 4."""
    problems = get_task("word-sums:8").problems("train", 200, 0)
    numbers = {int(n) for p in problems for n in re.findall(r"\d+", p.prompt.split("\n\n")[-1])}
    assert numbers == set(range(1, 9))
    for wrong in ("3", "x", "-9", "4.5", "²"):
        with pytest.raises(InputError, match="word-sums: expected the largest number, .* got"):
            get_task(f"word-sums:{wrong}")


@pytest.mark.parametrize("name", ["word-sums", "largest"])
def test_splits_share_no_prompt_and_seeds_repeat(name):
    task = get_task(name)
    train, test = task.problems("train", 200, 0), task.problems("test", 200, 1)
    assert not {p.prompt for p in train} & {p.prompt for p in test}
    assert task.problems("train", 9, 3) == task.problems("train", 9, 3) != task.problems("train", 9, 4)


def test_largest():
    task = get_task("largest")
    for problem in task.problems("train", 20, 0):
        numbers = [int(n) for n in re.findall(r"\d+", problem.prompt)]
        assert len(set(numbers)) == 4
        assert problem.answer == max(numbers)
    problem = Problem("Which number is the largest: 18, 59, 44, 69?", 69)
    for text, reward in [
        ("69", 1),
        ("Of 18 and 69 it is **69**.", 1),
        ("69 is larger than 59.", 0),
        ("169", 0),
        ("", 0),
    ]:
        assert task.score(problem, text) == reward
