import numpy as np
import pytest
from groups import group_and_rewards
from hypothesis import given, settings
from reference import ReferenceGroup

from lambda_grpo import InputError, ProcessTree, credit

# 0: a b c, 1: a b d, 2: a e, 3: z
TREE = ProcessTree.build([[1, 2, 3], [1, 2, 4], [1, 5], [26]])
REWARDS = [1.0, 0.0, 0.0, 1.0]
# mean 1/2; sample std sqrt(4 × 1/4 / 3) = 0.577350; a = ±0.5 / 0.577450 = ±0.865876
A = 0.5 / (3**-0.5 + 1e-4)


def test_group_advantage_by_hand() -> None:
    assert credit.group_advantage(REWARDS) == pytest.approx([A, -A, -A, A], abs=1e-15)
    assert credit.group_advantage([0.1] * 3).tolist() == [0, 0, 0]
    assert credit.group_advantage([7]).tolist() == [0]
    assert credit.group_advantage([]).tolist() == []


def test_grpo_by_hand() -> None:
    result = credit.grpo(TREE, REWARDS)
    assert result.advantage == pytest.approx(np.array([[A, A, A], [-A, -A, -A], [-A, -A, 0], [A, 0, 0]]))
    assert result.weight.tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert result.advantage.dtype == result.weight.dtype == np.float32


def test_process_by_hand() -> None:
    # A({0,1,2}) = (A - A - A) / 3 = -A/3, A({0,1}) = 0, and single completions keep their own.
    result = credit.process(TREE, REWARDS)
    expected = [[-A / 3, 0, A], [-A / 3, 0, -A], [-A / 3, -A, 0], [A, 0, 0]]
    assert result.advantage == pytest.approx(np.array(expected), abs=1e-7)
    assert result.weight.tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]]


def test_lambda_grpo_by_hand() -> None:
    result = credit.lambda_grpo(TREE, REWARDS)
    third = np.float32(1) / np.float32(3)
    assert result.weight.tolist() == [[third, 0.5, 1], [third, 0.5, 1], [third, 1, 0], [1, 0, 0]]
    assert result.advantage == pytest.approx(credit.grpo(TREE, REWARDS).advantage)
    assert result.weighted == pytest.approx(result.weight * result.advantage)


@given(group_and_rewards())
@settings(max_examples=200)
def test_equal_the_definitions(case: tuple[list[list[int]], list[float]]) -> None:
    completions, rewards = case
    tree, reference = ProcessTree.build(completions), ReferenceGroup(completions)
    a = reference.advantages(rewards)
    assert credit.group_advantage(rewards) == pytest.approx(a, abs=1e-9)
    results = {name: credit.CREDITS[name](tree, rewards) for name in ("grpo", "process", "lambda_grpo")}
    for i, y in enumerate(completions):
        for t in range(len(y)):
            set_size = len(reference.process_set(i, t))
            assert results["grpo"].advantage[i, t] == pytest.approx(a[i], rel=1e-5, abs=1e-6)
            step = reference.step_advantage(rewards, i, t)
            assert results["process"].advantage[i, t] == pytest.approx(step, rel=1e-5, abs=1e-6)
            assert results["lambda_grpo"].weight[i, t] == pytest.approx(1 / set_size)
    for result in results.values():
        assert (result.weight[tree.step_index < 0] == 0).all()
        assert (result.advantage[tree.step_index < 0] == 0).all()


@given(group_and_rewards())
def test_each_step_is_pushed_once_under_lambda_grpo(case: tuple[list[list[int]], list[float]]) -> None:
    """λ-GRPO's total weight is one per unique token; its total push on a step is the step advantage."""
    completions, rewards = case
    tree = ProcessTree.build(completions)
    result = credit.lambda_grpo(tree, rewards)
    assert result.weight.sum() == pytest.approx(tree.unique_tokens, rel=1e-5)
    for node in range(tree.num_steps):
        inside = tree.step_index == node
        if inside.any():
            push = result.weighted[inside].sum() / (tree.end - tree.start)[node]
            expected = credit.process(tree, rewards).advantage[inside][0]
            assert push == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_mask_zeroes_tokens_but_not_the_tree() -> None:
    mask = np.array([[0, 1, 1], [0, 1, 1], [0, 1, 1], [1, 1, 1]])
    result = credit.lambda_grpo(TREE, REWARDS, mask=mask)
    assert result.weight.tolist() == [[0, 0.5, 1], [0, 0.5, 1], [0, 1, 0], [1, 0, 0]]
    assert (result.advantage[:3, 0] == 0).all()


def test_given_advantages_take_the_place_of_the_rewards() -> None:
    result = credit.process(TREE, REWARDS, advantages=[3, 0, 0, -1])
    assert result.advantage.tolist() == [[1, 1.5, 3], [1, 1.5, 0], [1, 0, 0], [-1, 0, 0]]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([1, 2], r"rewards: expected 4 \(one per completion\), got 2"),
        ([1, 2, float("nan"), 4], "rewards: completion #2 has nan"),
        ([1, 2, 3, float("-inf")], "rewards: completion #3 has -inf"),
        ([[1, 2, 3, 4]], r"rewards: expected one number per completion, got shape \(1, 4\)"),
        (["a", 1, 2, 3], "rewards: expected numbers"),
        ([None, 1, 2, 3], "rewards: completion #0 has nan"),
    ],
)
def test_bad_rewards(rewards: list, message: str) -> None:
    for name in credit.CREDITS:
        with pytest.raises(InputError, match=message):
            credit.CREDITS[name](TREE, rewards)


def test_bad_advantages_and_mask() -> None:
    with pytest.raises(InputError, match="advantages: expected 4 .* got 1"):
        credit.grpo(TREE, REWARDS, advantages=[1])
    with pytest.raises(InputError, match=r"mask: expected shape \(4, 3\)"):
        credit.grpo(TREE, REWARDS, mask=np.ones((4, 4)))


def test_unknown_names_say_the_near_miss() -> None:
    assert credit.get_credit("lambda_grpo") is credit.lambda_grpo
    with pytest.raises(InputError, match="unknown credit 'lambda-grpo': did you mean 'lambda_grpo'"):
        credit.get_credit("lambda-grpo")
    with pytest.raises(InputError, match="credit 'grpo' takes no parameters, got credit_kwargs 'tau'"):
        credit.get_credit("grpo", {"tau": 0.3})
