"""Plans and the credit for branched groups, by hand, and by going through every group that a small policy can draw."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from lambda_grpo import InputError, ProcessTree, credit
from lambda_grpo.branching import BranchPlan

Completion = tuple[int, ...]
Draw = tuple[float, tuple[Completion, ...]]  # a probability, and what was drawn with it


class SmallPolicy:
    """Writes up to three tokens; the last letter of its alphabet ends a completion. Its parameters are logits per prefix."""

    longest = 3

    def __init__(self, letters: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.end = letters - 1
        inner = [p for n in range(self.longest) for p in itertools.product(range(self.end), repeat=n)]
        self.rows = {prefix: i for i, prefix in enumerate(inner)}
        self.chances = {p: c / c.sum() for p in inner for c in [rng.uniform(0.1, 1, letters)]}
        self.completions = list(self.continuations((), self.longest))
        self.rewards = {c: rng.normal() for _, (c,) in self.completions}

    def ended(self, prefix: Completion) -> bool:
        return len(prefix) == self.longest or (len(prefix) > 0 and prefix[-1] == self.end)

    def continuations(self, prefix: Completion, depth: int) -> Iterator[Draw]:
        """Every way to go on to `depth` tokens or to the end."""
        if self.ended(prefix) or len(prefix) == depth:
            yield 1.0, (prefix,)
            return
        for token, chance in enumerate(self.chances[prefix]):
            for rest, drawn in self.continuations((*prefix, token), depth):
                yield chance * rest, drawn

    def score(self, completion: Completion, weights: np.ndarray) -> np.ndarray:
        """Σ over its tokens of weight × ∇ log π."""
        gradient = np.zeros((len(self.rows), self.end + 1))
        for t, token in enumerate(completion):
            prefix = completion[:t]
            gradient[self.rows[prefix]] += weights[t] * (np.eye(self.end + 1)[token] - self.chances[prefix])
        return gradient

    def policy_gradient(self, of: Callable[[int], float] = lambda t: 1.0) -> np.ndarray:
        """∇ Σ π(y) r(y); `of` gives each token's place a factor."""
        places = np.array([of(t) for t in range(self.longest)])
        return sum(chance * self.rewards[c] * self.score(c, places) for chance, (c,) in self.completions)


def blocks_of(policy: SmallPolicy, plan: BranchPlan, level: int, prefix: Completion) -> Iterator[Draw]:
    """Every block of slots that goes on from a prefix, forks included."""
    if level == len(plan.depths):
        yield from policy.continuations(prefix, policy.longest)
        return
    for chance, (trunk,) in policy.continuations(prefix, plan.depths[level]):
        children = [list(blocks_of(policy, plan, level + 1, trunk))] * plan.factors[level]
        for drawn in itertools.product(*children):
            together = chance * float(np.prod([p for p, _ in drawn]))
            yield together, tuple(c for _, completions in drawn for c in completions)


def expected(
    policy: SmallPolicy, plan: BranchPlan, roots: int, give: Callable[..., np.ndarray]
) -> np.ndarray:
    """The mean over all branched groups of 1/G · Σᵢ Σₜ give(tree, rewards)ᵢₜ · ∇ log π."""
    blocks = list(blocks_of(policy, plan, 0, ()))
    assert sum(p for p, _ in blocks) == pytest.approx(1)
    total = 0.0
    for drawn in itertools.product(blocks, repeat=roots):
        group = [c for _, completions in drawn for c in completions]
        tree = ProcessTree.build([np.array(c) for c in group])
        given = give(tree, np.array([policy.rewards[c] for c in group]))
        pushed = sum(policy.score(c, given[i]) for i, c in enumerate(group))
        total = total + float(np.prod([p for p, _ in drawn])) * pushed / len(group)
    return total


PLANS = [((1,), (2,)), ((2,), (2,)), ((1,), (3,)), ((1, 2), (2, 2))]


@pytest.mark.parametrize("baseline", ["outside", "siblings", "mixed"])
@pytest.mark.parametrize(("depths", "factors"), PLANS)
def test_unbiased_at_every_depth(depths: tuple[int, ...], factors: tuple[int, ...], baseline: str) -> None:
    policy, plan = SmallPolicy(2, 1), BranchPlan(depths, factors)
    got = expected(
        policy, plan, 2,
        lambda tree, rewards: credit.branch(tree, rewards, plan=plan, baseline=baseline, scale="none").weighted,
    )  # fmt: skip
    assert np.abs(policy.policy_gradient()).max() > 0.01
    assert np.allclose(got, policy.policy_gradient(), atol=1e-6)


def test_unbiased_with_three_letters_and_three_roots() -> None:
    plan = BranchPlan((2,), (2,))
    for policy, roots in ((SmallPolicy(3, 2), 2), (SmallPolicy(2, 3), 3)):
        got = expected(
            policy, plan, roots, lambda tree, rewards: credit.branch(tree, rewards, plan=plan, scale="none").weighted
        )  # fmt: skip
        assert np.allclose(got, policy.policy_gradient(), atol=1e-6)


@pytest.mark.parametrize(("depths", "factors"), PLANS)
def test_a_fork_that_is_chosen_by_the_group_mean_is_not(
    depths: tuple[int, ...], factors: tuple[int, ...]
) -> None:
    """GRPO's mean contains the block itself: 1 − m/G where m rows share a token; 0.5 and 0.75 for 2 roots × 2."""
    policy, plan = SmallPolicy(2, 1), BranchPlan(depths, factors)
    sizes = np.array(plan.sizes(2 * int(np.prod(factors))))
    shares = 1 - sizes / (2 * np.prod(factors))
    if factors == (2,):
        assert shares.tolist() == [0.5, 0.75]
    level = plan.level(policy.longest)
    got = expected(
        policy, plan, 2,
        lambda tree, rewards: credit.grpo(tree, rewards, advantages=rewards - rewards.mean()).weighted,
    )  # fmt: skip
    assert np.allclose(got, policy.policy_gradient(lambda t: shares[level[t]]), atol=1e-6)
    assert not np.allclose(got, policy.policy_gradient(), atol=1e-3)


def test_counting_each_sampled_token_once_is_another_objective() -> None:
    """1/m instead of 1 under the group mean: 0.25 and 0.75 for 2 roots × 2."""
    policy, plan = SmallPolicy(2, 1), BranchPlan((2,), (2,))
    once = np.array([0.5, 0.5, 1.0])
    got = expected(
        policy, plan, 2,
        lambda tree, r: credit.grpo(tree, r, advantages=r - r.mean()).weighted * once[: tree.step_index.shape[1]],
    )  # fmt: skip
    assert np.allclose(got, policy.policy_gradient(lambda t: 0.25 if t < 2 else 0.75), atol=1e-6)


def test_marginals_are_the_policy() -> None:
    """Each slot alone is a completion of the policy."""
    policy, plan = SmallPolicy(2, 4), BranchPlan((1, 2), (2, 2))
    wanted = {c: chance for chance, (c,) in policy.completions}
    for slot in range(4):
        found = dict.fromkeys(wanted, 0.0)
        for chance, completions in blocks_of(policy, plan, 0, ()):
            found[completions[slot]] += chance
        assert found == pytest.approx(wanted)


def test_by_hand() -> None:
    """Two roots × 2 at depth 1, rewards 1 0 | 0 .5. Block means .5 and .25 on the trunks.

    Trunk, all baselines: .5 − .25 and .25 − .5.
    Row 0's suffix: outside (0 + 0 + .5)/3 = 1/6, its sibling 0, mixed half of each 1/12.
    """
    tree = ProcessTree.build([[5, 6], [5, 7], [8, 9], [8, 4]])
    plan = BranchPlan((1,), (2,))
    for baseline, first in (("outside", 5 / 6), ("siblings", 1.0), ("mixed", 11 / 12)):
        given = credit.branch(tree, [1, 0, 0, 0.5], plan=plan, baseline=baseline, scale="none")
        assert given.advantage[:, 0].tolist() == [0.25, 0.25, -0.25, -0.25]
        assert given.advantage[0, 1] == pytest.approx(first)
        assert (given.weight == 1).all()
    scaled = credit.branch(tree, [1, 0, 0, 0.5], plan=plan)
    plain = credit.branch(tree, [1, 0, 0, 0.5], plan=plan, scale="none")
    std = np.std([1, 0, 0, 0.5], ddof=1) + 1e-4
    assert np.allclose(scaled.advantage, plain.advantage / std, atol=1e-6)


def test_masked_completions_are_in_no_mean() -> None:
    tree = ProcessTree.build([[5, 6], [5, 7], [8, 9], [8, 4]])
    mask = np.array([[1, 1], [0, 0], [1, 1], [1, 1]])
    given = credit.branch(
        tree, [1, 99, 0, 0.5], plan=BranchPlan((1,), (2,)), baseline="outside", scale="none", mask=mask
    )
    assert given.advantage[0].tolist() == [0.75, 0.75]  # 1 − (0 + .5)/2, at both depths
    assert given.advantage[1].tolist() == [0, 0]
    for baseline, last in (("mixed", 0.75), ("siblings", 0)):  # no sibling tells: `mixed` is `outside`
        given = credit.branch(
            tree, [1, 99, 0, 0.5], plan=BranchPlan((1,), (2,)), baseline=baseline, scale="none", mask=mask
        )
        assert given.advantage[0].tolist() == [0.75, last]


def test_a_completion_that_ends_before_its_fork_fills_its_block() -> None:
    """Row 2's suffix: outside (1 + 1 + 0)/3, its sibling 0, half of each 1/3."""
    tree = ProcessTree.build([[9], [9], [5, 6], [5, 7]])
    given = credit.branch(tree, [1, 1, 0, 0], plan=BranchPlan((1,), (2,)), scale="none")
    assert given.advantage.tolist() == [
        [1, 0],
        [1, 0],
        [-1, pytest.approx(-1 / 3)],
        [-1, pytest.approx(-1 / 3)],
    ]


def test_blocks() -> None:
    plan = BranchPlan((1, 3), (2, 2))
    assert plan.sizes(8) == (4, 2, 1)
    blocks = plan.blocks(8, 5)
    assert blocks.dtype == np.int32
    assert blocks[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert blocks[:, 1].tolist() == blocks[:, 2].tolist() == [2, 2, 3, 3, 4, 4, 5, 5]
    assert blocks[:, 3].tolist() == blocks[:, 4].tolist() == [6, 7, 8, 9, 10, 11, 12, 13]


def test_first_rows_by_hand() -> None:
    """8 rows, forks at 1 and 3: blocks of 4, 2, 1. Lengths 1: all four; 2 and 3: both; 4: alone."""
    plan = BranchPlan((1, 3), (2, 2))
    assert plan.first_rows(8, [1, 1, 1, 1, 2, 2, 4, 5]).tolist() == [0, 0, 0, 0, 4, 4, 6, 7]
    assert plan.first_rows(8, [4, 5, 3, 3] * 4).tolist() == [
        0,
        1,
        2,
        2,
        4,
        5,
        6,
        6,
        8,
        9,
        10,
        10,
        12,
        13,
        14,
        14,
    ]


def test_counting_once_is_the_weight_of_lambda_grpo() -> None:
    """Where no block begins like another by chance, 1/|λ| is 1/m."""
    tree = ProcessTree.build([[1, 2, 5], [1, 2, 6], [3, 4, 7], [3, 4, 8]])
    assert credit.lambda_grpo(tree, [1, 0, 0, 0]).weight.tolist() == [[0.5, 0.5, 1]] * 4


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: BranchPlan((4, 4), (2, 2)), "expected each deeper than the one before"),
        (lambda: BranchPlan((0,), (2,)), "whole numbers from 1 on"),
        (lambda: BranchPlan((4,), (1,)), "whole numbers from 2 on"),
        (lambda: BranchPlan((4, 8), (2,)), "one per depth"),
        (lambda: BranchPlan((), ()), "expected a list of whole numbers"),
        (lambda: BranchPlan((4,), (2,)).sizes(7), "does not divide the 7 completions"),
        (lambda: BranchPlan((4,), (4,)).sizes(4), "one root"),
        (lambda: BranchPlan((8,), (2,)).check_length(8), "not below max_completion_length 8"),
    ],
)
def test_plans_that_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()


def test_credits_that_are_refused() -> None:
    plan = BranchPlan((1,), (2,))
    tree = ProcessTree.build([[5, 6], [5, 7], [8, 9], [7, 4]])
    with pytest.raises(InputError, match=r"completions #2 and #3 are in one block up to token 1, but differ"):
        credit.branch(tree, [1, 0, 0, 0], plan=plan)
    same = ProcessTree.build([[5, 6], [5, 7], [8, 9], [8, 4]])
    with pytest.raises(InputError, match="baseline"):
        credit.branch(same, [1, 0, 0, 0], plan=plan, baseline="sibling")
    with pytest.raises(InputError, match="scale"):
        credit.branch(same, [1, 0, 0, 0], plan=plan, scale="std")
