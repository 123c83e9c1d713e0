"""`ForkChooser`: where the next batch forks, by what earlier batches showed (`branch_depths="auto"`).

A fork at depth d makes b completions of one beginning. It saves tokens, but their rewards are alike as far as
the beginning decides them. Let ρ(d) be the share of the reward's variance that the first d tokens decide,
σ_b² / (σ_b² + σ_w²); T the mean length of a completion, and m the mean of min(length, d). A root costs
m + b (T − m) tokens, and its mean reward has ρ + (1 − ρ)/b of one completion's variance. So at equal tokens

    gain(d, b) = T / ((ρ + (1 − ρ)/b) · (m + b (T − m)))

is the variance of a mean reward over independent completions, divided by that over forked ones. It is largest
at b = √(m/(T − m) · (1 − ρ)/ρ).

The choice for a batch depends on earlier batches alone, because depths that depend on the completions at hand
bias the gradient. It is a function of what was recorded, without random numbers: ranks that record the same,
and runs that are resumed, choose the same.

Groups whose rewards are all equal say nothing about ρ and are not recorded. Old records fall out, so the
choice follows the policy as it learns.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lambda_grpo.branching import BranchPlan, variance_components
from lambda_grpo.errors import InputError

Float64 = NDArray[np.float64]

LEAST_GAIN = 1.05  # a fork that gains less is not worth that completions are alike
TRIED_GROUPS = 16  # records by which a depth counts as tried
_RECORDS = 1024
_LENGTHS = 4096
_ERRORS = 2.0  # standard errors by which an estimate may be wrong


class ForkChooser:
    """Chooses one depth and one factor for each batch, or none.

    The first batch does not fork: it shows how long completions are. Candidates are the powers of two below
    their mean length. Each of them that may gain `LEAST_GAIN` is tried, the shallowest first, with the
    smallest factor. Then the depth and factor with the largest estimated gain are taken. If no estimate
    reaches `LEAST_GAIN`, but one within its error does, that one is taken, to learn more. If none does, the
    chooser turns itself off for good: it would learn nothing more without forks.

    Attributes:
        factors: those that divide `num_completions` and leave at least two roots.
        plan: of the next batch; None: it does not fork.
        is_off: whether no batch will fork any more.

    >>> chooser = ForkChooser(num_completions=4, max_length=64)
    >>> chooser.plan is None
    True
    >>> chooser.learn(None, rewards=[[1, 0, 0, 1]], lengths=[20, 24, 20, 16])
    >>> chooser.plan
    BranchPlan(depths=(2,), factors=(2,))
    """

    def __init__(self, num_completions: int, max_length: int) -> None:
        """Begin with no records.

        Args:
            num_completions: G, slots of a group.
            max_length: the most tokens of a completion.

        Raises:
            InputError: no factor fits G, or there is no depth to fork at.
        """
        self.factors = tuple(b for b in range(2, num_completions // 2 + 1) if num_completions % b == 0)
        if not self.factors:
            raise InputError(
                f"branch_depths 'auto': {num_completions} completions of a group cannot be two roots or more "
                "of two or more each: set num_generations to 4, 6, 8 or another number that is not prime"
            )
        if max_length < 2:
            raise InputError(
                f"branch_depths 'auto': completions of {max_length} token have no place to fork: raise "
                "max_completion_length"
            )
        self.max_length = max_length
        self.is_off = False
        self.plan: BranchPlan | None = None
        self._records: deque[tuple[int, float, float]] = deque(maxlen=_RECORDS)  # depth, between, within
        self._lengths: deque[int] = deque(maxlen=_LENGTHS)

    def learn(self, plan: BranchPlan | None, rewards: ArrayLike, lengths: ArrayLike) -> None:
        """Record a batch, and choose for the next one.

        Args:
            plan: where the batch forked.
            rewards: (K, G) of its groups; groups with a NaN are left out.
            lengths: tokens of its completions, slot by slot.
        """
        self._lengths.extend(np.asarray(lengths, np.int64).ravel().tolist())
        if plan is not None:
            values = np.asarray(rewards, np.float64)
            telling = values[np.isfinite(values).all(axis=1) & (values != values[:, :1]).any(axis=1)]
            for between, *within in variance_components(telling, plan).tolist():
                self._records.append((plan.depths[0], between, sum(within)))
        self.plan = self._choose()

    def state(self) -> dict[str, Any]:
        """What was recorded, as plain numbers."""
        records = [list(record) for record in self._records]
        return {"records": records, "lengths": list(self._lengths), "off": self.is_off}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned; the plan is the same then."""
        self._records = deque(((int(d), b, w) for d, b, w in state["records"]), maxlen=_RECORDS)
        self._lengths = deque(state["lengths"], maxlen=_LENGTHS)
        self.is_off = state["off"]
        self.plan = self._choose()

    def shares(self, depth: int) -> tuple[float, float, int]:
        """ρ(d), its standard error, and the groups they are estimated from; (0, ∞, n) before it was tried."""
        own = np.array([(b, b + w) for d, b, w in self._records if d == depth]).reshape(-1, 2)
        count = len(own)
        if count < TRIED_GROUPS:
            return 0.0, np.inf, count
        between, total = own.T
        share = between.sum() / total.sum()
        residual = between - share * total  # of a ratio of two sums
        error = np.sqrt(count / (count - 1) * (residual**2).sum()) / total.sum()
        return float(np.clip(share, 0, 1)), float(error), count

    def _choose(self) -> BranchPlan | None:
        if self.is_off or not self._lengths:
            return None
        mean = np.mean(self._lengths)
        depths = [2**k for k in range(30) if 2**k < min(mean, self.max_length)]
        if not depths:
            return None
        share, error, count = map(np.array, zip(*map(self.shares, depths), strict=True))
        tried = count >= TRIED_GROUPS
        # Longer beginnings decide more, so what a shorter one surely decides bounds the others.
        least_share = np.maximum.accumulate(np.maximum(share - _ERRORS * error, 0))
        hopeful = self.gains(depths, least_share)
        open_depths = ~tried & (hopeful.max(axis=1) >= LEAST_GAIN)
        if open_depths.any():
            return BranchPlan((depths[int(open_depths.argmax())],), self.factors[:1])
        estimated = np.where(tried[:, None], self.gains(depths, share), 0)
        gains = estimated if estimated.max() >= LEAST_GAIN else hopeful
        if gains.max() < LEAST_GAIN:
            self.is_off = True
            return None
        depth, factor = np.unravel_index(gains.argmax(), gains.shape)
        return BranchPlan((depths[depth],), (self.factors[factor],))

    def gains(self, depths: ArrayLike, shares: ArrayLike) -> Float64:
        """(D, B) gain of each depth with each of `factors`, if the first tokens decide these shares."""
        lengths = np.array(self._lengths, np.float64)
        before = np.minimum(lengths, np.reshape(depths, (-1, 1))).mean(axis=1)[:, None]
        share, factor = np.reshape(shares, (-1, 1)), np.array(self.factors)
        variance = share + (1 - share) / factor
        tokens = before + factor * (lengths.mean() - before)
        return lengths.mean() / (variance * tokens)
