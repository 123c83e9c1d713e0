import pytest

from lambda_grpo import InputError
from lambda_grpo.tasks import Problem, get_task
from lambda_grpo.tasks.thinking_sums import CHARACTERS, demonstrations

TASK = get_task("thinking-sums")
PROBLEM = Problem("7+2+9+4=", 22)


@pytest.mark.parametrize("completion", [".22", "?9,18,22", "?22", "?1,22", ".022"])
def test_right_totals(completion: str) -> None:
    assert TASK.score(PROBLEM, completion) == 1


@pytest.mark.parametrize(
    "completion",
    ["", "22", ".", "?", ".21", ".122", "?9,18,", "?9,18,21", ".22.", ".22 ", "?9,,22", ".2²", "?22,9"],
)
def test_anything_else_scores_0(completion: str) -> None:
    assert TASK.score(PROBLEM, completion) == 0


def test_problems_are_repeatable_and_splits_disjoint() -> None:
    train, test = TASK.problems("train", 5000, 0), TASK.problems("test", 500, 0)
    assert train == TASK.problems("train", 5000, 0)
    assert train != TASK.problems("train", 5000, 1)
    assert {p.prompt for p in train}.isdisjoint(p.prompt for p in test)
    assert all(eval(p.prompt.rstrip("=")) == p.answer for p in train)


def test_demonstrations_are_careless_when_direct_and_right_when_thinking() -> None:
    pairs = demonstrations(4000, 0)
    answers = [Problem(prompt, eval(prompt.rstrip("="))) for prompt, _ in pairs]
    scores = [TASK.score(p, completion) for p, (_, completion) in zip(answers, pairs, strict=True)]
    thinking = [TASK.traits(completion)["thinking"] for _, completion in pairs]
    assert sum(thinking) / 4000 == pytest.approx(0.4, abs=0.03)
    assert all(score for score, think in zip(scores, thinking, strict=True) if think)
    direct = [score for score, think in zip(scores, thinking, strict=True) if not think]
    assert sum(direct) / len(direct) == pytest.approx(1 / 9, abs=0.02)  # nine errors, -4 to 4, equally likely
    assert set("".join(p + c for p, c in pairs)) <= set(CHARACTERS)
    assert max(len(c) for _, c in pairs) <= len("?18,27,36,45")
    test = {p.prompt for p in TASK.problems("test", 500, 0)}
    assert test.isdisjoint(prompt for prompt, _ in pairs)


def test_unknown_task() -> None:
    with pytest.raises(InputError, match="unknown task 'thinking_sums': did you mean 'thinking-sums'"):
        get_task("thinking_sums")
