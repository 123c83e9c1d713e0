"""`ForkChooser`: where the next batch forks, by what earlier batches showed (`branch_depths="auto"`).

A fork at depth d into b blocks saves tokens. It also compares completions of one beginning with each other,
which takes what the beginning decides out of the noise of later tokens. But there are fewer beginnings.

Let ρ(d) be the share of the reward's variance that the first d tokens decide, σ_b² / (σ_b² + σ_w²); T the
mean length of a completion, m the mean of min(length, d); N = G/b the roots, v = ρ + (1 − ρ)/b. In units of
the variance of one reward and of one token's ∇ log π, summed over tokens, the gradient of a group has the
variance

    independent   T / (G − 1)                                     and G T sampled tokens
    forked        m v / (N − 1) + (T − m)/G · w                   and N (m + b (T − m)) of them,

    w = ρ (1 − q)² + (1 − ρ)(1 + q²/(b − 1)) + (1 − q)² v/(N − 1)     with q = (b − 1)/b · G/(G − 1)

for the credit `branch` with its baseline `mixed`, in which siblings have the weight q. The gain of a fork is
the variance without it over the variance with it, at equal tokens. This takes for granted that ∇ log π is as
large for all tokens and does not depend on the rewards.

The choice for a batch depends on earlier batches alone, because depths that depend on the completions at hand
bias the gradient. It is a function of what was recorded, without random numbers: ranks that record the same,
and runs that are resumed, choose the same.

Groups whose rewards are all equal say nothing about ρ and are not recorded. A record is a group, or the mean
of several of them in a batch that has many. Old records fall out, so the choice follows the policy as it
learns. ρ is that of all groups together: those whose rewards vary more count more.
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
    BranchPlan(depths=(1,), factors=(2,))
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
        self.num_completions, self.max_length = num_completions, max_length
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
            found = variance_components(telling, plan)
            # A batch gives few records, however large it is: else it drives out what other depths showed.
            for part in np.array_split(found, TRIED_GROUPS):
                if len(part):
                    between, *within = part.mean(axis=0).tolist()
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
        """ρ(d), its standard error, and the records that tell them; (0, ∞, n) before it was tried."""
        own = np.array([(b, b + w) for d, b, w in self._records if d == depth]).reshape(-1, 2)
        count = len(own)
        if count < TRIED_GROUPS:
            return 0.0, np.inf, count
        between, total = own.T
        share = between.sum() / total.sum()
        residual = between - share * total  # of a ratio of two sums
        error = np.sqrt(count / (count - 1) * (residual**2).sum()) / total.sum()
        return float(np.clip(share, 0, 1)), float(error), count

    def described(self) -> str:
        """Why it is off: what was estimated at each depth that was tried."""
        tried = [(depth, *self.shares(depth)) for depth in sorted({depth for depth, *_ in self._records})]
        known = ", ".join(
            f"{share:.2f} ± {error:.2f} by token {depth} ({count} records)"
            for depth, share, error, count in tried
            if count >= TRIED_GROUPS
        )
        return (
            f"at equal tokens no fork is estimated to gain {LEAST_GAIN - 1:.0%} in variance over independent "
            f"completions. Share of the rewards' variance that is decided: {known or 'not estimated'}"
        )

    def _choose(self) -> BranchPlan | None:
        if self.is_off or not self._lengths:
            return None
        mean = np.mean(self._lengths)
        depths = [2**k for k in range(30) if 2**k < min(mean, self.max_length)]
        if not depths:
            return None
        share, error, count = map(np.array, zip(*map(self.shares, depths), strict=True))
        tried = count >= TRIED_GROUPS
        # Longer beginnings decide more, so what is sure of one bounds the others.
        least = np.maximum.accumulate(np.clip(share - _ERRORS * error, 0, 1))
        most = np.minimum.accumulate(np.clip(share + _ERRORS * error, 0, 1)[::-1])[::-1]
        hopeful = np.maximum(self.gains(depths, least), self.gains(depths, most))
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
        """(D, B) gain of each depth with each of `factors`, if the first tokens decide these shares.

        The inverse of a gain is linear in the share.
        """
        lengths = np.array(self._lengths, np.float64)
        size, total = self.num_completions, lengths.mean()
        before = np.minimum(lengths, np.reshape(depths, (-1, 1))).mean(axis=1)[:, None]
        after = total - before
        share, factor = np.reshape(shares, (-1, 1)), np.array(self.factors)
        roots, siblings = size / factor, (factor - 1) / factor * size / (size - 1)
        beginning = share + (1 - share) / factor  # variance of a root's mean reward
        others = (1 - siblings) ** 2
        own = share * others + (1 - share) * (1 + siblings**2 / (factor - 1))
        ending = own + others * beginning / (roots - 1)
        variance = before * beginning / (roots - 1) + after / size * ending
        tokens = roots * (before + factor * after)
        return total / (size - 1) * size * total / (variance * tokens)
