"""Where to fork, chosen from earlier batches: numbers by hand, and processes whose right choice is known."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lambda_grpo import InputError
from lambda_grpo.branching import BranchPlan, variance_components
from lambda_grpo.fork_chooser import LEAST_GAIN, TRIED_GROUPS, ForkChooser

LENGTH, GROUP = 32, 8


class Process:
    """Completions of 32 tokens, each token a number; the reward is their weighted sum.

    So the first d tokens decide Σ_{t<d} w² of Σ w².
    """

    def __init__(self, weights: Sequence[float], seed: int = 0) -> None:
        self.weights, self.rng = np.array(weights, float), np.random.default_rng(seed)

    def rewards(self, plan: BranchPlan | None, groups: int) -> np.ndarray:
        numbers = np.arange(GROUP)[:, None] + np.zeros(LENGTH, int)  # which block samples a token
        if plan:
            numbers = plan.blocks(GROUP, LENGTH)
        tokens = self.rng.normal(size=(groups, int(numbers.max()) + 1, LENGTH))
        return (tokens[:, numbers, np.arange(LENGTH)] * self.weights).sum(-1)

    def share(self, depth: int) -> float:
        return float((self.weights[:depth] ** 2).sum() / (self.weights**2).sum())


def weights(begin: int, end: int) -> list[float]:
    """The tokens from `begin` to `end` decide the reward, all alike."""
    return [float(begin <= t < end) for t in range(LENGTH)]


def trained(process: Process, batches: int, groups: int = 8) -> tuple[ForkChooser, list[BranchPlan | None]]:
    """The chooser after some batches, and what it chose."""
    chooser, plans = ForkChooser(GROUP, LENGTH), []
    for _ in range(batches):
        plans.append(chooser.plan)
        lengths = np.full(groups * GROUP, LENGTH)
        chooser.learn(chooser.plan, process.rewards(chooser.plan, groups), lengths)
    return chooser, plans


def test_components_by_hand() -> None:
    """Rewards 1 0 | 0 .5: means .5 and .25, variance 1/32; within .5 and .125, mean 5/16; 1/32 − 5/32 = −1/8.

    Three levels, 1 0 | 0 0 || 1 1 | 0 0: the last (.5 + 0 + 0 + 0)/4 = 1/8; means .5 0 || 1 0 have variances 1/8 and
    1/2, mean 5/16, less 1/16; the roots .25 and .5 have 1/32, less 5/32.
    """
    assert variance_components([[1, 0, 0, 0.5]], BranchPlan((1,), (2,))).tolist() == [[-1 / 8, 5 / 16]]
    found = variance_components([[1, 0, 0, 0, 1, 1, 0, 0]] * 2, BranchPlan((1, 2), (2, 2)))
    assert found.tolist() == [[-1 / 8, 1 / 4, 1 / 8]] * 2


@pytest.mark.parametrize(("depths", "factors"), [((8,), (2,)), ((8,), (4,)), ((4, 12), (2, 2))])
def test_components_are_those_of_the_process(depths: tuple[int, ...], factors: tuple[int, ...]) -> None:
    process = Process(weights(2, 18))
    found = variance_components(
        process.rewards(BranchPlan(depths, factors), 20_000), BranchPlan(depths, factors)
    )
    decided = [process.share(depth) for depth in (0, *depths, LENGTH)]
    expected = 16 * np.diff(decided)
    error = found.std(axis=0) / np.sqrt(len(found))
    assert (np.abs(found.mean(axis=0) - expected) < 4 * error).all()
    assert (error < 0.2).all()


def chooser_of(lengths: Sequence[int], group: int = GROUP) -> ForkChooser:
    chooser = ForkChooser(group, 64)
    chooser.learn(None, np.zeros((1, group)), lengths)
    return chooser


def test_gains_by_hand() -> None:
    """48 tokens, fork at 16 into 2, ρ = .2: (.2 + .4) · (16 + 64) = 48, so the gain is 1; into 4: .4 · 144 = 57.6.

    Where nothing is decided, 48 / (½ · 80) = 1.2; where all is, 48/80. Completions of 8 and 88 tokens have m = 12.
    """
    chooser = chooser_of([48] * 8)
    assert chooser.factors == (2, 4)
    assert chooser.gains([16], [0.2])[0].tolist() == pytest.approx([1, 48 / 57.6])
    assert chooser.gains([16, 16], [0, 1])[:, 0].tolist() == pytest.approx([1.2, 0.6])
    assert chooser_of([8, 88] * 4).gains([16], [0])[0, 0] == pytest.approx(48 / (0.5 * (12 + 72)))


def test_the_best_factor_is_that_of_the_formula() -> None:
    """b = √(m/(T − m) · (1 − ρ)/ρ): at 16 of 32 and ρ = 1/26 it is 5."""
    chooser = ForkChooser(60, 64)
    chooser.learn(None, np.zeros((1, 60)), [32] * 60)
    assert chooser.factors == (2, 3, 4, 5, 6, 10, 12, 15, 20, 30)
    assert chooser.factors[chooser.gains([16], [1 / 26])[0].argmax()] == 5


def test_a_gain_is_the_ratio_of_variances_at_equal_tokens() -> None:
    process, plan = Process(weights(12, 28)), BranchPlan((16,), (4,))  # ρ = 1/4
    chains = process.rewards(None, 20_000).mean(axis=1).var() * GROUP * LENGTH
    forked = process.rewards(plan, 20_000).mean(axis=1).var() * 2 * (16 + 4 * 16)
    chooser = ForkChooser(GROUP, LENGTH)
    chooser.learn(None, np.zeros((1, GROUP)), [LENGTH])
    assert chooser.gains([16], [process.share(16)])[0, 1] == pytest.approx(chains / forked, rel=0.05)


@pytest.mark.parametrize(
    ("values", "right"),
    [
        (weights(28, 32), BranchPlan((16,), (4,))),  # nothing is decided at 16: 32 / (16/4 + 16) = 1.6
        (
            weights(8, 16),
            BranchPlan((8,), (4,)),
        ),  # all is decided at 16, and nothing at 8: 32 / (8/4 + 24) = 1.23
        # A fifth is decided at 4, 8 and 16: 1.11 at 16 with two blocks, 1 with four, less at the other depths.
        ([a + b for a, b in zip(weights(2, 3), weights(26, 30), strict=True)], BranchPlan((16,), (2,))),
    ],
)
def test_the_right_depth_and_factor(values: list[float], right: BranchPlan) -> None:
    chooser, plans = trained(Process(values), 200)
    assert plans[0] is None
    assert not chooser.is_off
    assert plans[-100:].count(right) > 80


def test_it_tries_each_depth_that_may_gain_and_no_other() -> None:
    """At 1 and 2 of 32 tokens no factor can gain 5%: 32 / (2/4 + 30) = 1.049."""
    _, plans = trained(Process(weights(28, 32)), 8)
    two = (2,)
    assert plans == [None] + [BranchPlan((d,), two) for d in (4, 4, 8, 8, 16, 16)] + [BranchPlan((16,), (4,))]


@pytest.mark.parametrize(
    ("values", "most"),
    [
        (weights(0, 2), 3),  # the first two tokens decide all: the trial at 4 rules the deeper depths out
        ([1.0] * LENGTH, 200),  # each token decides as much: the gain is at most 1 at every depth
    ],
)
def test_it_turns_itself_off(values: list[float], most: int) -> None:
    chooser, plans = trained(Process(values), 200)
    assert chooser.is_off
    assert chooser.plan is None
    off_from = max(i for i, plan in enumerate(plans) if plan) + 1
    assert off_from <= most
    assert set(plans[:off_from]) > {None}


def test_groups_that_say_nothing_are_not_recorded() -> None:
    chooser = chooser_of([LENGTH] * GROUP)
    tried = chooser.plan
    assert tried == BranchPlan((4,), (2,))
    equal, unscored = [0.5] * GROUP, [np.nan, *[0.0] * (GROUP - 2), 1.0]
    for _ in range(TRIED_GROUPS):
        chooser.learn(tried, [equal, unscored], [LENGTH] * 2 * GROUP)
    assert chooser.shares(4)[2] == 0
    assert chooser.plan == tried
    for _ in range(TRIED_GROUPS):  # 4 roots whose beginnings decide nothing
        chooser.learn(tried, [[1, 0] * 4], [LENGTH] * GROUP)
    assert chooser.shares(4) == (0, 0, TRIED_GROUPS)
    assert chooser.plan == BranchPlan((8,), (2,))


def test_a_share_and_its_error_by_hand() -> None:
    """Half of the groups: two roots 1 1 and two 0 0: between 1/3, within 0. The others 1 0 in each: −1/4 and 1/2.

    ρ = (1/3 − 1/4) / (1/3 + 1/4) = 1/7. Residuals 2/7 and −2/7; n = 16: √(16/15 · 16 · (2/7)²) / (8 · 7/12).
    """
    chooser = chooser_of([LENGTH] * GROUP)
    for _ in range(TRIED_GROUPS // 2):
        chooser.learn(BranchPlan((4,), (2,)), [[1, 1, 1, 1, 0, 0, 0, 0], [1, 0] * 4], [LENGTH] * GROUP)
    share, error, count = chooser.shares(4)
    assert (share, count) == (pytest.approx(1 / 7), TRIED_GROUPS)
    assert error == pytest.approx((16 / 15 * 16) ** 0.5 * (2 / 7) / (8 * 7 / 12))


def test_old_records_fall_out_and_the_choice_follows() -> None:
    """What is decided late becomes decided early, and the fork moves forward."""
    process = Process(weights(28, 32))
    chooser, _ = trained(process, 100)
    assert chooser.plan == BranchPlan((16,), (4,))
    process.weights = np.array(weights(8, 16))
    plans = []
    for _ in range(300):
        plans.append(chooser.plan)
        chooser.learn(chooser.plan, process.rewards(chooser.plan, 8), [LENGTH] * 8 * GROUP)
    assert plans[-150:].count(BranchPlan((8,), (4,))) > 100


@pytest.mark.parametrize("batches", [1, 5, 40])
def test_it_goes_on_from_its_state(batches: int) -> None:
    """As it would have, from numbers that JSON keeps."""
    process = Process(weights(14, 30))
    chooser, _ = trained(process, batches)
    resumed: Any = ForkChooser(GROUP, LENGTH)
    resumed.load_state(json.loads(json.dumps(chooser.state())))
    for _ in range(60):
        assert resumed.plan == chooser.plan
        rewards = process.rewards(chooser.plan, 8)
        for each in (chooser, resumed):
            each.learn(each.plan, rewards, [LENGTH] * 8 * GROUP)


def test_off_stays_off() -> None:
    chooser, _ = trained(Process(weights(0, 2)), 10)
    resumed = ForkChooser(GROUP, LENGTH)
    resumed.load_state(chooser.state())
    for each in (chooser, resumed):
        each.learn(None, Process(weights(28, 32)).rewards(None, 8), [LENGTH] * 8 * GROUP)
        assert each.is_off
        assert each.plan is None


def test_what_cannot_be_chosen_from() -> None:
    for group in (2, 3, 5, 7):
        with pytest.raises(
            InputError, match=f"'auto': {group} completions of a group cannot be two roots or more"
        ):
            ForkChooser(group, 64)
    with pytest.raises(InputError, match="completions of 1 token have no place to fork"):
        ForkChooser(4, 1)
    short = ForkChooser(4, 64)
    short.learn(None, [[0, 1, 0, 1]], [1, 1, 1, 1])
    assert short.plan is None
    assert not short.is_off


def test_no_depth_reaches_the_longest_completion() -> None:
    chooser = ForkChooser(GROUP, 16)
    chooser.learn(None, np.zeros((1, GROUP)), [16] * GROUP)
    seen = set()
    for _ in range(20):
        assert chooser.plan is not None
        seen.add(chooser.plan.depths[0])
        chooser.learn(chooser.plan, [[1, 0] * 4] * TRIED_GROUPS, [16] * GROUP)
    assert seen == {1, 2, 4, 8} - {d for d in (1, 2) if 16 / (d / 4 + 16 - d) < LEAST_GAIN}
