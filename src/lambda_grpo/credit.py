"""ProcessTree + rewards → `TokenCredit`: who gets pushed, and how hard.

A credit is a pure function of the tree and the rewards of one group; it sees no log-probs. Each
token's loss is `weight * loss(logp, advantage)`, KL term included, so a credit changes the gradient of
token (i, t) by the factor `weight[i, t]` (method: identity 1, weighting is gradient scaling).

To add a credit, write one function here with the same signature as `grpo`, and register it under its
name. Its own parameters are keywords after `mask`; configs pass them as `credit_kwargs`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lambda_grpo.errors import InputError, unknown_name
from lambda_grpo.tree import ProcessTree

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TokenCredit:
    """What one group's tokens get.

    Attributes:
        advantage: (G, T) float32, zero past a completion's end and where masked.
        weight: (G, T) float32 ≥ 0, likewise.
    """

    advantage: NDArray[np.float32]
    weight: NDArray[np.float32]

    @property
    def weighted(self) -> NDArray[np.float32]:
        """(G, T) weight × advantage, for engines that take token advantages only.

        Exact for token-level ratios without KL term: the clipped objective is positively homogeneous
        in the advantage.
        """
        return self.weight * self.advantage


Credit = Callable[..., TokenCredit]
CREDITS: dict[str, Credit] = {}


def _register(credit: Credit) -> Credit:
    CREDITS[credit.__name__] = credit
    return credit


def group_advantage(rewards: ArrayLike, *, eps: float = 1e-4) -> Float64:
    """Group-relative advantage a_i = (r_i - mean r) / (std r + ε), with the sample std.

    Args:
        rewards: (G,) finite numbers, one outcome reward per completion.
        eps: ε; 1e-4 in TRL and in the paper.

    Returns:
        (G,) float64; exactly 0 where all rewards are equal or G = 1.

    Raises:
        InputError: rewards that are not one-dimensional, not numbers, or not finite.

    >>> group_advantage([1, 0, 0, 1]).round(4)
    array([ 0.8659, -0.8659, -0.8659,  0.8659])
    """
    r = _finite_row(rewards, "rewards")
    if len(r) < 2 or r.min() == r.max():
        return np.zeros_like(r)
    return (r - r.mean()) / (r.std(ddof=1) + eps)


@_register
def grpo(
    tree: ProcessTree,
    rewards: ArrayLike,
    *,
    advantages: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> TokenCredit:
    """Plain GRPO: every token of completion i gets (a_i, 1).

    Args:
        tree: the group's process tree.
        rewards: (G,) finite outcome rewards.
        advantages: (G,) the trainer's own a_i, where they are not `group_advantage(rewards)`.
        mask: (G, T) true where a policy token enters the loss; other tokens get zeros. It does not
            change the tree.

    Raises:
        InputError: shapes that do not fit the tree, or numbers that are not finite.
    """
    return _token_credit(tree, _advantages(tree, rewards, advantages)[:, None], 1.0, mask)


@_register
def process(
    tree: ProcessTree,
    rewards: ArrayLike,
    *,
    advantages: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> TokenCredit:
    """The process reward model GRPO hides: token (i, t) gets (A(λ(i,t)), 1).

    A(λ) = (R̂(λ) - mean r) / (std r + ε) with the step reward R̂(λ) = mean of r over λ (paper,
    section 3), which is the mean of a over λ. Its gradient is `grpo`'s where no ratio is clipped and all
    tokens share one denominator (losses `dapo`, `bnpo`, `dr_grpo`); not for per-sequence means, nor for
    sequence-level ratios. Completions without a policy token in `mask`, truncated ones say, are left out of
    the mean, as they are left out of GRPO's sum.

    Arguments and errors as `grpo`.
    """
    a_G = _advantages(tree, rewards, advantages)
    counted = None if mask is None else np.asarray(tree.policy_tokens(mask).any(axis=1))
    return _token_credit(tree, tree.per_token(step_means(tree, a_G, counted)), 1.0, mask)


@_register
def lambda_grpo(
    tree: ProcessTree,
    rewards: ArrayLike,
    *,
    advantages: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> TokenCredit:
    """λ-GRPO: token (i, t) gets (a_i, 1 / |λ(i,t)|), so that a step is pushed once, not |λ| times.

    Sullivan & Koller, arXiv 2509.21154, section 4: L = 1/ΣT_i · Σ_i Σ_t (P_it·a_i - D_it) / |λ(i,t)|.
    The denominator stays the raw token count. Exact duplicates count in |λ|.

    Arguments and errors as `grpo`.

    >>> tree = ProcessTree.build([[5, 6, 7], [5, 6, 8], [9]])
    >>> lambda_grpo(tree, [1, 0, 0]).weight
    array([[0.5, 0.5, 1. ],
           [0.5, 0.5, 1. ],
           [1. , 0. , 0. ]], dtype=float32)
    """
    a_G = _advantages(tree, rewards, advantages)
    return _token_credit(tree, a_G[:, None], tree.per_token(np.float32(1) / tree.size), mask)


def step_means(tree: ProcessTree, values: ArrayLike, counted: NDArray[np.bool_] | None = None) -> Float64:
    """Mean over each process set of one value per completion: (G,) → (N,).

    With `counted` (G,) over the completions it marks only; 0 where a set has none.
    """
    values_G = np.asarray(values, np.float64)
    if counted is None:
        return _step_sums(tree, values_G) / tree.size
    return _step_sums(tree, values_G * counted) / np.maximum(_step_sums(tree, counted), 1)


def get_credit(name: str, kwargs: Mapping[str, Any] | None = None) -> Credit:
    """The credit registered as `name`, after checking that it takes the parameters `kwargs`.

    Raises:
        InputError: an unknown credit or an unknown parameter, with the nearest miss.
    """
    if name not in CREDITS:
        raise unknown_name("credit", name, CREDITS)
    own = list(inspect.signature(CREDITS[name]).parameters)[4:]  # after tree, rewards, advantages, mask
    for key in kwargs or {}:
        if key not in own:
            if not own:
                raise InputError(f"credit {name!r} takes no parameters, got credit_kwargs {key!r}")
            raise unknown_name(f"parameter of credit {name!r}", key, own)
    return CREDITS[name]


def _finite_row(values: ArrayLike, name: str) -> Float64:
    try:
        row = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected numbers: {error}") from None
    if row.ndim != 1:
        raise InputError(f"{name}: expected one number per completion, got shape {row.shape}")
    finite = np.isfinite(row)
    if not finite.all():
        i = int(finite.argmin())
        raise InputError(f"{name}: completion #{i} has {row[i]}, expected a finite number")
    return row


def _advantages(tree: ProcessTree, rewards: ArrayLike, advantages: ArrayLike | None) -> Float64:
    """The (G,) advantages to use, after checking them and the rewards against the tree."""
    rows = {"rewards": _finite_row(rewards, "rewards")}
    if advantages is not None:
        rows["advantages"] = _finite_row(advantages, "advantages")
    for name, row in rows.items():
        if len(row) != tree.num_completions:
            raise InputError(f"{name}: expected {tree.num_completions} (one per completion), got {len(row)}")
    return rows["advantages"] if advantages is not None else group_advantage(rows["rewards"])


def _step_sums(tree: ProcessTree, values: NDArray[Any]) -> Float64:
    """Sum over each process set of one value per completion: (G,) → (N,)."""
    sums = np.concatenate([[0.0], np.cumsum(values[tree.order])])
    return sums[tree.first + tree.size] - sums[tree.first]


def _token_credit(
    tree: ProcessTree, advantage: NDArray[Any], weight: NDArray[Any] | float, mask: ArrayLike | None
) -> TokenCredit:
    """Both as (G, T) float32, zero past the end and where masked."""
    inside = tree.policy_tokens(mask)
    zero = np.float32(0)
    return TokenCredit(
        np.where(inside, np.asarray(advantage, np.float32), zero),
        np.where(inside, np.asarray(weight, np.float32), zero),
    )
