"""What each credit's gradient is on average, by going through every group that a small policy can draw.

The policy writes up to three tokens out of {0, 1, 2}; 2 ends a completion. Its parameters are the logits of each
prefix, so ∇ log π(y | prefix) is e_y − π(· | prefix) in that prefix's row. The advantages are rᵢ − mean r, without
the standard deviation, because a random divisor has no closed form.
"""

import itertools

import numpy as np
import pytest
import torch

from lambda_grpo import ProcessTree, credit

END, LONGEST = 2, 3
PREFIXES = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]
COMPLETIONS = [(2,), (0, 2), (1, 2), *((a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1, 2))]

_rng = np.random.default_rng(0)
POLICY = {prefix: p / p.sum() for prefix in PREFIXES if (p := _rng.uniform(0.1, 1, 3)) is not None}
REWARDS = dict(zip(COMPLETIONS, _rng.normal(size=len(COMPLETIONS)), strict=True))


def probability(completion: tuple[int, ...]) -> float:
    return float(np.prod([POLICY[completion[:t]][token] for t, token in enumerate(completion)]))


def score(prefix: tuple[int, ...], token: int) -> np.ndarray:
    """(prefixes, 3) ∇ log π(token | prefix)."""
    gradient = np.zeros((len(PREFIXES), 3))
    gradient[PREFIXES.index(prefix)] = np.eye(3)[token] - POLICY[prefix]
    return gradient


def expected(name: str, size: int, **params: float) -> np.ndarray:
    """The mean over all groups of Σᵢ Σₜ weight × advantage × ∇ log π, each group as often as the policy draws it."""
    total = np.zeros((len(PREFIXES), 3))
    for group in itertools.product(COMPLETIONS, repeat=size):
        rewards = np.array([REWARDS[c] for c in group])
        tree = ProcessTree.build([np.array(c) for c in group])
        given = credit.CREDITS[name](tree, rewards, advantages=rewards - rewards.mean(), **params)
        pushed = sum(
            given.weighted[i, t] * score(c[:t], token)
            for i, c in enumerate(group)
            for t, token in enumerate(c)
        )
        total += np.prod([probability(c) for c in group]) * pushed
    return total


def formula(weight) -> np.ndarray:
    """Σ over prefixes p of weight(π(p)) × (V(p) − V) × ∇ log π(last token of p | the tokens before)."""
    mean = sum(probability(c) * REWARDS[c] for c in COMPLETIONS)
    total = np.zeros((len(PREFIXES), 3))
    for p in {c[: t + 1] for c in COMPLETIONS for t in range(len(c))}:
        through = [c for c in COMPLETIONS if c[: len(p)] == p]
        chance = sum(map(probability, through))
        value = sum(probability(c) * REWARDS[c] for c in through) / chance
        total += weight(chance) * (value - mean) * score(p[:-1], p[-1])
    return total


def policy_gradient() -> np.ndarray:
    """∇ Σ π(y) r(y)."""
    return sum(
        probability(c) * REWARDS[c] * score(c[:t], token) for c in COMPLETIONS for t, token in enumerate(c)
    )


@pytest.mark.parametrize("size", [2, 3])
def test_grpo_is_the_policy_gradient(size: int) -> None:
    got = expected("grpo", size)
    assert np.allclose(got, (size - 1) * policy_gradient(), atol=1e-6)
    assert np.allclose(got, formula(lambda chance: (size - 1) * chance), atol=1e-6)


@pytest.mark.parametrize("size", [2, 3])
def test_lambda_grpo_counts_a_prefix_by_the_chance_that_another_completion_takes_it(size: int) -> None:
    got = expected("lambda_grpo", size)
    assert np.allclose(got, formula(lambda chance: 1 - (1 - chance) ** (size - 1)), atol=1e-6)
    # Two completions share a prefix with its own chance, so there is no difference yet; from three on there is.
    direction = policy_gradient() / np.linalg.norm(policy_gradient())
    cosine = (got / np.linalg.norm(got) * direction).sum()
    assert (cosine > 1 - 1e-9) if size == 2 else (cosine < 0.999)


def test_the_share_that_the_page_prints() -> None:
    """docs/method.md: λ-GRPO's weight over GRPO's, from certain (1/(G − 1)) to rare (1) prefixes."""
    size = 8
    for chance, share in ((0.01, 0.97), (0.1, 0.75), (0.5, 0.28), (0.9, 0.16), (1.0, 0.14)):
        assert (1 - (1 - chance) ** (size - 1)) / ((size - 1) * chance) == pytest.approx(share, abs=0.005)


def test_adam_forgets_one_factor_for_all_tokens() -> None:
    """A gradient that is c times as large gives Adam the same update; SGD's is c times as large."""
    updates = {}
    for make in (lambda p: torch.optim.Adam(p, lr=0.1, eps=0), lambda p: torch.optim.SGD(p, lr=0.1)):
        for factor in (1.0, 0.25):
            weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
            optimizer = make([weight])
            for step in range(3):
                weight.grad = factor * torch.tensor([0.3, -2.0, 0.1 + step], dtype=torch.float64)
                optimizer.step()
            updates[type(optimizer).__name__, factor] = (weight.detach() - 1).numpy()
    assert np.allclose(updates["Adam", 1.0], updates["Adam", 0.25], rtol=1e-12)
    assert np.allclose(0.25 * updates["SGD", 1.0], updates["SGD", 0.25], rtol=1e-12)
