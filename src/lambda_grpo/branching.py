"""`BranchPlan`: where the completions of a group fork, chosen before sampling.

A group of G slots begins as N roots. At each depth (tokens after the prompt) every block of slots splits
into as many blocks as that depth's factor, so G = N · ∏ factors. The slots of a block are neighbours and
share every token up to the block's next fork; these tokens are sampled once. A completion that ends before a
fork fills all slots of its block. Depths do not depend on what is sampled: forks chosen by looking at the
finished completion are biased.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lambda_grpo.errors import InputError


@dataclass(frozen=True)
class BranchPlan:
    """Fork at these depths, each time into so many blocks.

    Attributes:
        depths: tokens after the prompt, at least 1, strictly increasing.
        factors: for each depth, the number of blocks that a block splits into; at least 2.

    Raises:
        InputError: depths that do not increase, factors below 2, not one factor per depth.

    >>> BranchPlan(depths=(2,), factors=(2,)).blocks(num_completions=4, length=3)
    array([[0, 0, 2],
           [0, 0, 3],
           [1, 1, 4],
           [1, 1, 5]], dtype=int32)
    """

    depths: tuple[int, ...]
    factors: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, least in (("depths", 1), ("factors", 2)):
            values = getattr(self, name)
            if not isinstance(values, Sequence) or isinstance(values, str) or not values:
                raise InputError(
                    f"branch {name}: expected a list of whole numbers, such as [{least}], got {values!r}"
                )
            if not all(
                isinstance(v, int | np.integer) and not isinstance(v, bool) and v >= least for v in values
            ):
                raise InputError(f"branch {name}: expected whole numbers from {least} on, got {list(values)}")
            object.__setattr__(self, name, tuple(map(int, values)))
        if list(self.depths) != sorted(set(self.depths)):
            raise InputError(
                f"branch depths: expected each deeper than the one before, got {list(self.depths)}"
            )
        if len(self.depths) != len(self.factors):
            raise InputError(
                f"branch factors: expected one per depth, got {len(self.factors)} factors for "
                f"{len(self.depths)} depths"
            )

    def sizes(self, num_completions: int) -> tuple[int, ...]:
        """Slots per block before the first fork, after it, and so on; the last is 1.

        Raises:
            InputError: the factors do not divide `num_completions`, or fewer than two roots are left.

        >>> BranchPlan((16, 32), (2, 2)).sizes(8)
        (4, 2, 1)
        """
        product = math.prod(self.factors)
        if num_completions % product:
            raise InputError(
                f"branch factors: their product {product} does not divide the {num_completions} completions "
                "of a group: change num_generations or the factors"
            )
        if num_completions == product:
            raise InputError(
                f"branch factors: {num_completions} completions leave one root, which all completions "
                "share: there is nothing to compare it with, so it gets no gradient: raise num_generations "
                "or lower the factors"
            )
        return tuple(math.prod(self.factors[level:]) for level in range(len(self.factors) + 1))

    def level(self, length: int) -> NDArray[np.int32]:
        """(T,) how many forks lie before each token."""
        return np.searchsorted(self.depths, np.arange(length), side="right").astype(np.int32)

    def blocks(self, num_completions: int, length: int) -> NDArray[np.int32]:
        """(G, T) int32: the number of the block that samples each token; blocks are numbered level by level.

        Args:
            num_completions: G, slots of the group.
            length: T, tokens of the longest completion; tokens past a completion's own end have a number too.

        Raises:
            InputError: as `sizes`.
        """
        sizes = np.array(self.sizes(num_completions))
        counts = num_completions // sizes
        begin = np.concatenate([[0], np.cumsum(counts)[:-1]])
        level = self.level(length)
        slots = np.arange(num_completions)[:, None]
        return (begin[level] + slots // sizes[level]).astype(np.int32)

    def first_rows(self, num_completions: int, lengths: ArrayLike) -> NDArray[np.int64]:
        """(B,) for each row of whole groups the row it repeats, or itself.

        A completion that ended before a fork fills its block: its rows repeat the first of them.

        Args:
            num_completions: G.
            lengths: (B,) tokens of the rows.

        >>> BranchPlan((2,), (2,)).first_rows(4, [2, 2, 5, 3]).tolist()
        [0, 0, 2, 3]
        """
        lengths = np.asarray(lengths)
        sizes = np.array(self.sizes(num_completions))[np.searchsorted(self.depths, lengths, side="left")]
        rows = np.arange(len(lengths))
        return rows - rows % sizes

    def check_length(self, max_length: int) -> None:
        """Raise InputError where a fork lies at or beyond the longest completion."""
        if self.depths[-1] >= max_length:
            raise InputError(
                f"branch depths: {self.depths[-1]} is not below max_completion_length {max_length}: nothing "
                "would be sampled after that fork"
            )


def variance_components(rewards: ArrayLike, plan: BranchPlan) -> NDArray[np.float64]:
    """(K, F + 1) how much of the rewards' variance is decided before the first of F forks, between forks, and
    after the last; estimated without bias from each group alone.

    They add up to the variance of one completion's reward. An estimate may be below 0, so take means over
    groups. With one fork at d they are σ_b², the variance of the mean reward between beginnings of d tokens,
    and σ_w², the mean variance within one.

    Blocks below one block have means of variance v, so their mean has v / factor of it, which is taken off
    the variance that is seen one level higher.

    Args:
        rewards: (K, G) finite rewards of K groups, slots in the plan's order.
        plan: where these groups forked.

    Raises:
        InputError: as `BranchPlan.sizes`.

    >>> variance_components([[1, 0, 0, 0]], BranchPlan((16,), (2,)))  # means .5 and 0; .5 and 0 within
    array([[0.  , 0.25]])
    """
    values = np.asarray(rewards, np.float64)
    groups, num_completions = values.shape
    sizes = plan.sizes(num_completions)
    children = (num_completions // sizes[0], *plan.factors)  # blocks below a group, a root, and so on
    seen = np.zeros((groups, len(sizes)))
    for level, (size, count) in enumerate(zip(sizes, children, strict=True)):
        means = values.reshape(groups, num_completions // (count * size), count, size).mean(axis=-1)
        seen[:, level] = means.var(axis=-1, ddof=1).mean(axis=-1)
    seen[:, :-1] -= seen[:, 1:].copy() / plan.factors
    return seen
