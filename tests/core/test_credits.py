"""The credits past the paper: by hand, by their literal definitions, by what each of them promises."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from groups import group_and_rewards
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_credits import Case, literal, plain

from lambda_grpo import InputError, ProcessTree, TokenCredit, cli, credit
from lambda_grpo.credit import CREDITS, Credit

# 0: a b b c, 1: a b b d, 2: a e e, 3: z. Steps: a = {0,1,2}, bb = {0,1}, and what each has alone.
COMPLETIONS = [[1, 2, 2, 3], [1, 2, 2, 4], [1, 5, 5], [26]]
TREE = ProcessTree.build(COMPLETIONS)
ADVANTAGES = [3.0, -1.0, -1.0, -1.0]
# A(root) = 0, A({0,1,2}) = (3 - 1 - 1) / 3 = 1/3, A({0,1}) = (3 - 1) / 2 = 1.
REWARDS = [1.0, 0.0, 0.0, 0.0]  # ADVANTAGES are 4·r - 1


def given_advantages(name: str) -> TokenCredit:
    return CREDITS[name](TREE, REWARDS, advantages=ADVANTAGES)


def rows(values: list[list[float]]) -> object:
    return pytest.approx(np.array([row + [0] * (4 - len(row)) for row in values]), abs=1e-6)


# By hand.
@pytest.mark.parametrize(
    ("power", "a", "bb"), [(1, 1 / 3, 1 / 2), (0.5, 0.57735, 0.707107), (0, 1, 1), (2, 1 / 9, 1 / 4)]
)
def test_power_by_hand(power: float, a: float, bb: float) -> None:
    # |λ| = 3 for a, 2 for bb: 3^-½ = 1/1.732051 = 0.57735, 2^-½ = 1/1.414214 = 0.707107.
    result = credit.lambda_grpo(TREE, REWARDS, advantages=ADVANTAGES, power=power)
    assert result.weight == rows([[a, bb, bb, 1], [a, bb, bb, 1], [a, 1, 1], [1]])
    assert result.advantage == rows([[3] * 4, [-1] * 4, [-1] * 3, [-1]])
    plain = {0: credit.grpo, 1: credit.lambda_grpo}.get(power)
    if plain:
        assert (result.weight == plain(TREE, REWARDS).weight).all()


def test_matched_by_hand() -> None:
    # Σ|a| over tokens: 3·4 + 1·4 + 1·3 + 1·1 = 20. Σ|a|/|λ|: 3·(1/3 + 1/2 + 1/2 + 1) = 7, 7/3, 1/3 + 1 + 1 = 7/3, 1;
    # together 38/3. c = 20 / (38/3) = 30/19.
    c = 30 / 19
    result = given_advantages("lambda_grpo_matched")
    assert result.weight == rows([[c / 3, c / 2, c / 2, c], [c / 3, c / 2, c / 2, c], [c / 3, c, c], [c]])
    assert result.advantage == rows([[3] * 4, [-1] * 4, [-1] * 3, [-1]])


def test_unique_by_hand() -> None:
    # ΣT = 4 + 4 + 3 + 1 = 12; U = a, bb, c, d, ee, z = 8; 12/8 = 3/2.
    result = given_advantages("lambda_grpo_unique")
    assert result.weight == rows([[1 / 2, 3 / 4, 3 / 4, 3 / 2]] * 2 + [[1 / 2, 3 / 2, 3 / 2], [3 / 2]])
    assert result.advantage == rows([[3] * 4, [-1] * 4, [-1] * 3, [-1]])


def test_optimistic_by_hand() -> None:
    # τ = 1/ln 4, so exp(r/τ) = 4^r: 4, 1, 1, 1. R̂({0,1,2}) = log₄(6/3) = 1/2, R̂({0,1}) = log₄(5/2) = 0.660964.
    # mean r = 1/4, std r = √((9/16 + 3·1/16) / 3) = 1/2.
    tau, std = 1 / math.log(4), 0.5 + 1e-4
    result = credit.optimistic(TREE, REWARDS, tau=tau)
    a, bb, good, bad = (0.5 - 0.25) / std, (0.660964 - 0.25) / std, 0.75 / std, -0.25 / std
    assert result.advantage == rows([[a, bb, bb, good], [a, bb, bb, bad], [a, bad, bad], [bad]])
    assert result.weight == rows([[1 / 3, 1 / 2, 1 / 2, 1]] * 2 + [[1 / 3, 1, 1], [1]])
    # A trainer that does not divide by the standard deviation: R̂ - mean r.
    result = credit.optimistic(TREE, REWARDS, advantages=[0.75, -0.25, -0.25, -0.25], tau=tau)
    assert result.advantage[0] == pytest.approx([0.25, 0.410964, 0.410964, 0.75], abs=1e-6)
    # One that does not subtract the mean either: 2·R̂, though most advantages are 0.
    result = credit.optimistic(TREE, REWARDS, advantages=[2, 0, 0, 0], tau=tau)
    assert result.advantage[0] == pytest.approx([1, 1.321928, 1.321928, 2], abs=1e-6)


def test_optimistic_keeps_its_scale_beside_a_completion_that_no_one_could_score() -> None:
    # TRL gives it advantage 0, our engine reward 0, which is not on the line a = 2·r - 3 of the others.
    tree = ProcessTree.build([[1, 2], [1, 3], [4]])
    result = credit.optimistic(tree, [2, 1, 0], advantages=[1, -1, 0], tau=1 / (2 * math.log(4)))
    # τk = 1/ln 4: log₄((4 + 1/4) / 2) = 0.543731.
    assert result.advantage[:2, 0] == pytest.approx([0.543731] * 2, abs=1e-6)


def test_optimistic_where_only_the_advantages_differ() -> None:
    # Nothing tells the rewards' unit: τ is in that of the advantages. log₄((4 + 1/4) / 2) as above.
    tree = ProcessTree.build([[1, 2], [1, 3], [4]])
    result = credit.optimistic(tree, [1, 1, 1], advantages=[1, -1, 0], tau=1 / math.log(4))
    assert result.advantage[:2, 0] == pytest.approx([0.543731] * 2, abs=1e-6)


def test_tempo_by_hand() -> None:
    # Changes: a +1/3; bb 1 - 1/3 = 2/3; c 3 - 1 = 2; d -1 - 1 = -2; ee -1 - 1/3 = -4/3; z -1. Each on one token.
    result = given_advantages("tempo")
    expected = [
        [3 + 1 / 3, 3 + 2 / 3, 3, 5],
        [-1 + 1 / 3, -1 + 2 / 3, -1, -3],
        [-1 + 1 / 3, -1 - 4 / 3, -1],
        [-2],
    ]
    assert result.advantage == rows(expected)
    assert result.weight == rows([[1] * 4, [1] * 4, [1] * 3, [1]])


def test_vineppo_by_hand() -> None:
    # The same changes, each on all tokens of its step.
    result = given_advantages("vineppo")
    expected = [[1 / 3, 2 / 3, 2 / 3, 2], [1 / 3, 2 / 3, 2 / 3, -2], [1 / 3, -4 / 3, -4 / 3], [-1]]
    assert result.advantage == rows(expected)
    assert result.weight == rows([[1] * 4, [1] * 4, [1] * 3, [1]])


def test_treepo_by_hand() -> None:
    # 0: group 3, {0,1,2} 3 - 1/3 = 8/3, {0,1} 3 - 1 = 2; mean 23/9. 1: (-1 - 4/3 - 2) / 3 = -13/9.
    # 2: (-1 - 4/3) / 2 = -7/6. 3: alone below the root, -1.
    result = given_advantages("treepo")
    assert result.advantage == rows([[23 / 9] * 4, [-13 / 9] * 4, [-7 / 6] * 3, [-1]])
    assert result.weight == rows([[1] * 4, [1] * 4, [1] * 3, [1]])


def test_masks_by_hand() -> None:
    # Completion 1 is truncated, the first b is a tool's. A({0,1,2}) = (3 - 1) / 2 = 1, A({0,1}) = 3, A(root) = 1/3.
    mask = np.array([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    got = {name: CREDITS[name](TREE, REWARDS, advantages=ADVANTAGES, mask=mask) for name in CREDITS}
    assert got["vineppo"].advantage == rows([[2 / 3, 0, 2, 0], [], [2 / 3, -2, -2], [-4 / 3]])
    assert got["tempo"].advantage == rows([[3 + 2 / 3, 0, 3, 3], [], [-1 + 2 / 3, -3, -1], [-1 - 4 / 3]])
    assert got["treepo"].advantage == rows(
        [[5 / 2, 0, 5 / 2, 5 / 2], [], [-3 / 2] * 3, [-1]]
    )  # {0,1} is 0 alone
    # 0 1/3 + 1/2 + 1 = 11/6, 2 7/3, 3 1: U = 31/6 of 7 tokens; 3·11/6 + 7/3 + 1 = 53/6 of 3·3 + 3 + 1 = 13.
    assert got["lambda_grpo_unique"].weight[0] == pytest.approx(42 / 31 * np.array([1 / 3, 0, 1 / 2, 1]))
    assert got["lambda_grpo_matched"].weight[0] == pytest.approx(78 / 53 * np.array([1 / 3, 0, 1 / 2, 1]))
    # {0,1} is 0 alone. {0,1,2}: τk = 4·0.3, 1.2·ln((e^(3/1.2) + e^(-1/1.2)) / 2) = 2.210286.
    assert got["optimistic"].advantage[0] == pytest.approx([2.210286, 0, 3, 3], abs=1e-6)


# By their definitions.
@st.composite
def cases(draw: st.DrawFn) -> Case:
    completions, rewards = draw(group_and_rewards())
    case = plain(completions, rewards)
    if draw(st.booleans()):  # a trainer's advantages, tool tokens and truncated completions
        case.slope, case.shift = draw(st.floats(0.1, 4)), draw(st.floats(-2, 2))
        kept = st.lists(
            st.sampled_from([True, True, False]), min_size=case.mask.size, max_size=case.mask.size
        )
        case.mask = np.array(draw(kept), bool).reshape(case.mask.shape)
        case.mask[draw(st.lists(st.integers(0, len(completions) - 1), max_size=2))] = False
    return case


def assert_equals_the_definition(name: str, case: Case, definition: str) -> None:
    tree = ProcessTree.build(case.completions)
    result = CREDITS[name](tree, case.rewards, advantages=case.advantages, mask=case.mask)
    advantage, weight = literal(definition, case)
    assert result.advantage == pytest.approx(advantage, rel=1e-4, abs=1e-5)
    assert result.weight == pytest.approx(weight, rel=1e-5)
    assert result.advantage.dtype == result.weight.dtype == np.float32


@pytest.mark.parametrize("name", CREDITS)
@given(cases())
@settings(max_examples=60)
def test_equals_its_definition(name: str, case: Case) -> None:
    assert_equals_the_definition(name, case, name)


ADVERSARIAL = {
    "one completion": [[1, 2]],
    "all empty": [[], []],
    "all the same": [[1, 2]] * 4,
    "chain of prefixes": [[1] * k for k in range(12)],
    "duplicates at every depth": [[1], [1], [1, 2], [1, 2], [1, 2, 3], [1, 2, 3], []],
    "flat": [[1, 1], [2, 1], [3, 1], []],
    "comb": [[1] * k + [2] for k in range(10)],
}


@pytest.mark.parametrize("completions", ADVERSARIAL.values(), ids=ADVERSARIAL)
@pytest.mark.parametrize("name", CREDITS)
def test_equals_its_definition_on_adversarial_groups(name: str, completions: list[list[int]]) -> None:
    rewards = np.random.default_rng(len(completions)).normal(size=len(completions)).round(2).tolist()
    assert_equals_the_definition(name, plain(completions, rewards), name)


@pytest.mark.parametrize("name", CREDITS)
def test_the_definitions_can_be_told_apart(name: str) -> None:
    """The planted fault: no credit passes for another one."""
    case = plain(COMPLETIONS, [1.0, 0.0, 0.25, 0.5])
    for other in set(CREDITS) - {name}:
        with pytest.raises(AssertionError):
            assert_equals_the_definition(name, case, other)


# Invariances of all.
@pytest.mark.parametrize("name", CREDITS)
@given(cases(), st.randoms())
@settings(max_examples=30)
def test_the_order_of_completions_does_not_matter(name: str, case: Case, random: object) -> None:
    order = list(range(len(case.completions)))
    random.shuffle(order)
    results = [
        CREDITS[name](
            ProcessTree.build([case.completions[i] for i in rows]),
            [case.rewards[i] for i in rows],
            advantages=[case.advantages[i] for i in rows],
            mask=case.mask[rows],
        )
        for rows in (list(range(len(order))), order)
    ]
    assert results[1].advantage == pytest.approx(results[0].advantage[order], rel=1e-5, abs=1e-6)
    assert results[1].weight == pytest.approx(results[0].weight[order], rel=1e-5)


@pytest.mark.parametrize("name", CREDITS)
@given(group_and_rewards())
@settings(max_examples=30)
def test_a_mask_of_ones_is_no_mask(name: str, case: tuple[list[list[int]], list[float]]) -> None:
    tree = ProcessTree.build(case[0])
    without, masked = (CREDITS[name](tree, case[1], mask=m) for m in (None, np.ones(tree.step_index.shape)))
    assert (without.advantage == masked.advantage).all()
    assert without.weight == pytest.approx(masked.weight, rel=1e-6)


@pytest.mark.parametrize("name", CREDITS)
def test_equal_rewards_and_single_completions_teach_nothing(name: str) -> None:
    for tree, rewards in ((TREE, [0.1] * 4), (ProcessTree.build([[1, 2]]), [3])):
        result = CREDITS[name](tree, rewards)
        assert not result.advantage.any()
        assert (result.weight[tree.step_index >= 0] > 0).all()  # the KL term stays


@pytest.mark.parametrize("name", CREDITS)
def test_a_group_masked_whole_gives_zeros(name: str) -> None:
    result = CREDITS[name](TREE, REWARDS, mask=np.zeros((4, 4)))
    assert not result.advantage.any()
    assert not result.weight.any()


# What each promises; `wrong` does not keep it.
def random_group(seed: int) -> tuple[ProcessTree, np.ndarray]:
    rng = np.random.default_rng(seed)
    completions = [rng.integers(0, 3, rng.integers(1, 9)) for _ in range(12)]
    return ProcessTree.build(completions), rng.normal(size=12)


def promise(check: Callable[[Credit], None], right: Credit, wrong: Credit) -> None:
    check(right)
    with pytest.raises(AssertionError):
        check(wrong)


@pytest.mark.parametrize("seed", range(5))
def test_value_changes_add_up_to_the_value_of_the_leaf(seed: int) -> None:
    tree, rewards = random_group(seed)
    a = credit.group_advantage(rewards)
    ends_at = credit.step_means(tree, a)[
        tree.leaf
    ]  # a_i itself, if the completion shares its end with no other
    first = np.diff(tree.step_index, axis=1, prepend=-2) != 0

    def vine(candidate: Credit) -> None:
        total = (candidate(tree, rewards).advantage * first).sum(axis=1)
        assert total == pytest.approx(ends_at, abs=1e-5)

    def tempo(candidate: Credit) -> None:
        beyond = candidate(tree, rewards).advantage - credit.grpo(tree, rewards).advantage
        assert beyond.sum(axis=1) == pytest.approx(ends_at, abs=1e-5)

    promise(vine, credit.vineppo, credit.process)
    promise(tempo, credit.tempo, credit.vineppo)


@pytest.mark.parametrize("seed", range(5))
def test_matched_has_grpos_mass_and_unique_has_mean_weight_one(seed: int) -> None:
    tree, rewards = random_group(seed)
    inside = tree.step_index >= 0
    mass = np.abs(credit.grpo(tree, rewards).advantage).sum()

    def matched(candidate: Credit) -> None:
        assert np.abs(candidate(tree, rewards).weighted).sum() == pytest.approx(mass, rel=1e-5)

    def unique(candidate: Credit) -> None:
        assert candidate(tree, rewards).weight[inside].mean() == pytest.approx(1, rel=1e-5)

    def direction(candidate: Credit) -> None:
        ratio = candidate(tree, rewards).weight[inside] / credit.lambda_grpo(tree, rewards).weight[inside]
        assert ratio == pytest.approx(np.full(ratio.shape, ratio[0]), rel=1e-5)

    promise(matched, credit.lambda_grpo_matched, credit.lambda_grpo_unique)
    promise(unique, credit.lambda_grpo_unique, credit.lambda_grpo_matched)
    promise(direction, credit.lambda_grpo_matched, credit.grpo)
    promise(direction, credit.lambda_grpo_unique, credit.grpo)


def pushes(tree: ProcessTree, result: TokenCredit) -> np.ndarray:
    """(N,): what a token of each step is pushed by in all, in the first of its columns."""
    return np.array([
        result.weighted[tree.step_index[:, start] == node, start].sum() if start < end else 0
        for node, (start, end) in enumerate(zip(tree.start, tree.end, strict=True))
    ])  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_optimistic_lies_between_lambda_grpo_and_the_best(seed: int) -> None:
    tree, rewards = random_group(seed)
    a = credit.group_advantage(rewards)
    tokens = tree.end > tree.start
    mean = np.where(tokens, credit.step_means(tree, a), 0)
    best = (
        np.array([a[tree.order[f : f + n]].max() for f, n in zip(tree.first, tree.size, strict=True)])
        * tokens
    )

    def limits(candidate: Credit) -> None:
        assert pushes(tree, candidate(tree, rewards, tau=1e5)) == pytest.approx(mean, abs=1e-4)
        assert pushes(tree, candidate(tree, rewards, tau=1e-4)) == pytest.approx(best, abs=2e-3)
        pushed = pushes(tree, candidate(tree, rewards))
        assert (pushed >= mean - 1e-5).all()
        assert (pushed <= best + 1e-5).all()

    def without_weights(tree: ProcessTree, rewards: object, tau: float = 0.3) -> TokenCredit:
        result = credit.optimistic(tree, rewards, tau=tau)
        return TokenCredit(result.advantage, (result.weight > 0).astype(np.float32))

    promise(limits, credit.optimistic, without_weights)
    assert mean == pytest.approx(pushes(tree, credit.lambda_grpo(tree, rewards)), abs=1e-5)


def test_optimistic_does_not_lose_small_numbers() -> None:
    # exp((0 - 1000) / 0.3) is 0: the two bad completions' step must keep its own value, (0 - mean) / std.
    tree = ProcessTree.build([[1], [2, 3], [2, 4], [2, 5]])
    rewards = [1000.0, 0.0, 0.0, -1.0]
    a = credit.group_advantage(rewards)
    soft = 0.3 * math.log((1 + 1 + math.exp(-1 / 0.3)) / 3)
    expected = a[1] + soft / (np.std(rewards, ddof=1) + 1e-4)
    assert credit.optimistic(tree, rewards).advantage[1, 0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tau", [0, -1, math.nan, math.inf, "0.3", True, None])
def test_a_tau_that_is_none(tau: object) -> None:
    with pytest.raises(InputError, match="credit 'optimistic': tau: expected a positive number, got"):
        credit.optimistic(TREE, REWARDS, tau=tau)


@pytest.mark.parametrize("power", [-0.5, math.nan, math.inf, "1", True, None])
def test_a_power_that_is_none(power: object) -> None:
    with pytest.raises(InputError, match="credit 'lambda_grpo': power: expected a number from 0 on, got"):
        credit.lambda_grpo(TREE, REWARDS, power=power)


def test_treepo_is_grpo_without_shared_steps() -> None:
    flat = ProcessTree.build([[9, 1, 2], [9, 3], [9, 4, 1], [9]])  # a shared root is the group itself
    assert (credit.treepo(flat, REWARDS).advantage == credit.grpo(flat, REWARDS).advantage).all()
    assert (credit.treepo(TREE, REWARDS).advantage != credit.grpo(TREE, REWARDS).advantage).any()


def test_docs_and_help_name_all_credits(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "credits.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(CREDITS)
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    shown = capsys.readouterr().out
    settings = re.findall(r"[a-z_]+", shown[shown.index("--credit CREDIT") : shown.index("--credit_kwargs")])
    assert set(CREDITS) <= set(settings)


def test_a_credit_is_named_in_its_own_file_and_in_the_registry() -> None:
    """What else lists the credits follows from the registry."""
    package = Path(credit.__file__).parents[1]
    for name, home in (("vineppo", "tempo"), ("treepo", "treepo"), ("lambda_grpo_unique", "lambda_grpo")):
        named = {
            path.relative_to(package).as_posix()
            for path in package.rglob("*.py")
            if re.search(rf"\b{name}\b", path.read_text())
        }
        assert named == {f"credit/{home}.py", "credit/registry.py"}
        assert getattr(credit, name) is CREDITS[name]
