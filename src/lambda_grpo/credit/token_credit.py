"""What credits are made of: advantages per completion, values per step, and the `TokenCredit` they return."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lambda_grpo.errors import InputError
from lambda_grpo.tree import ProcessTree

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TokenCredit:
    """Advantage and weight of one group's tokens.

    Attributes:
        advantage: (G, T) float32, zero past a completion's end and where masked.
        weight: (G, T) float32 ≥ 0, likewise.
    """

    advantage: NDArray[np.float32]
    weight: NDArray[np.float32]

    @property
    def weighted(self) -> NDArray[np.float32]:
        """(G, T) weight × advantage, for engines that take token advantages only.

        It is exact for token-level ratios without KL term, because the clipped objective is positively
        homogeneous in the advantage.
        """
        return self.weight * self.advantage

    def _repr_html_(self) -> str:
        from lambda_grpo.tree_picture import draw_credit

        return draw_credit(self)._repr_html_()


Credit = Callable[..., TokenCredit]


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


def own_advantages(tree: ProcessTree, rewards: ArrayLike, advantages: ArrayLike | None) -> Float64:
    """(G,) float64: the trainer's `advantages`, or else `group_advantage(rewards)`.

    Raises:
        InputError: rewards or advantages that do not fit the tree, or are not finite.
    """
    rows = {"rewards": _finite_row(rewards, "rewards")}
    if advantages is not None:
        rows["advantages"] = _finite_row(advantages, "advantages")
    for name, row in rows.items():
        if len(row) != tree.num_completions:
            raise InputError(f"{name}: expected {tree.num_completions} (one per completion), got {len(row)}")
    return rows["advantages"] if advantages is not None else group_advantage(rows["rewards"])


def step_means(tree: ProcessTree, values: ArrayLike, counted: NDArray[np.bool_] | None = None) -> Float64:
    """Mean over each process set of one value per completion: (G,) → (N,).

    With `counted` (G,), the mean runs over the completions that it marks; 0 if a set has none.
    """
    values_G = np.asarray(values, np.float64)
    if counted is None:
        return step_sums(tree, values_G) / tree.size
    return step_sums(tree, values_G * counted) / np.maximum(step_sums(tree, counted), 1)


def step_values(tree: ProcessTree, advantages: Float64, mask: ArrayLike | None) -> Float64:
    """(N,): the step advantage A(λ), the mean of `advantages` (G,) over λ.

    Completions whose tokens are all masked (`samples`) are left out; 0 if all of a set are.
    """
    return step_means(tree, advantages, samples(tree, mask))


def samples(tree: ProcessTree, mask: ArrayLike | None) -> NDArray[np.bool_] | None:
    """(G,) bool: the completions whose rewards enter a step's value; None: all of them.

    A completion whose tokens are all masked, such as a truncated one, does not: GRPO's sum leaves it out too.
    An empty completion has nothing to mask, so it does.
    """
    if mask is None:
        return None
    return np.asarray(tree.policy_tokens(mask).any(axis=1) | (tree.lengths == 0))


def step_sums(tree: ProcessTree, values: NDArray[Any]) -> Float64:
    """Sum over each process set of one value per completion: (G,) → (N,)."""
    sums = np.concatenate([[0.0], np.cumsum(values[tree.order])])
    return sums[tree.first + tree.size] - sums[tree.first]


def path_sums(tree: ProcessTree, values: NDArray[Any]) -> NDArray[Any]:
    """Sum one value per node over each completion's path from the root: (N,) → (G,)."""
    change = np.zeros(tree.num_completions + 1, np.asarray(values).dtype)
    np.add.at(change, tree.first, values)
    np.subtract.at(change, tree.first + tree.size, values)
    sums = np.empty(tree.num_completions, change.dtype)
    sums[tree.order] = np.cumsum(change[:-1])
    return sums


def token_credit(
    tree: ProcessTree, advantage: NDArray[Any], weight: NDArray[Any] | float, mask: ArrayLike | None
) -> TokenCredit:
    """Advantage and weight, of any shape that broadcasts to (G, T), as float32 with zeros past the end and
    where masked.

    Raises:
        InputError: a mask of another shape than (G, T).
    """
    inside = tree.policy_tokens(mask)
    zero = np.float32(0)
    return TokenCredit(
        np.where(inside, np.asarray(advantage, np.float32), zero),
        np.where(inside, np.asarray(weight, np.float32), zero),
    )


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
