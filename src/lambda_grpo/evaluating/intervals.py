"""Means with intervals, and unbiased pass@k. Everywhere NaN means "not scorable".

Over problems the interval is the bootstrap's. What is uncertain is which problems were drawn, so problems are
resampled, each with all its samples: samples of one problem resemble each other, and resampling them one by
one would make the intervals too narrow. Over a few seeds the bootstrap is too narrow itself, and Student's t
takes its place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% interval; all NaN if there was nothing to average."""

    mean: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """`spec` is that of each number, `.3f` by default; a dash if there was nothing to average.

        An infinite interval is left out.
        """
        if math.isnan(self.mean):
            return "–"
        mean, low, high = (format(x, spec or ".3f") for x in (self.mean, self.low, self.high))
        return mean if math.isinf(self.low) else f"{mean} [{low}, {high}]"

    def __str__(self) -> str:
        return format(self)


def bootstrap(values: ArrayLike, *, resamples: int = 2000) -> Estimate:
    """Mean of `values` (P,), one per problem, with the percentile bootstrap's 95% interval; NaN is left out.

    Equal values, so a single one too, give an interval of no width.

    >>> bootstrap([1.0, 1.0, float("nan")])
    Estimate(mean=1.0, low=1.0, high=1.0)
    """
    x = np.asarray(values, np.float64)
    x = x[~np.isnan(x)]
    if not len(x):
        return Estimate(math.nan, math.nan, math.nan)
    low, high = np.quantile(resampled_means(x, resamples=resamples), [0.025, 0.975])
    return Estimate(float(x.mean()), float(low), float(high))


def student(values: ArrayLike) -> Estimate:
    """Mean of `values` (S,), one per seed, with the 95% interval of Student's t; NaN is left out.

    For a few values, if they are about normal. Equal values give an interval of no width, a single one an
    infinite one.

    >>> f"{student([1.0, 2.0, 3.0]):.3f}"
    '2.000 [-0.484, 4.484]'
    """
    x = np.asarray(values, np.float64)
    x = x[~np.isnan(x)]
    if not len(x):
        return Estimate(math.nan, math.nan, math.nan)
    mean = float(x.mean())
    half = _quantile(len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else math.inf
    return Estimate(mean, mean - half, mean + half)


@cache
def _quantile(freedom: int) -> float:
    """Student's t below which 97.5% lie; its density is summed up from 0 on."""
    t = np.linspace(0, 13, 130_001)  # 12.706 at one degree of freedom, which is the largest
    density = (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
    log_mass = math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2) + math.log(freedom * math.pi) / 2
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * t[1])])
    return float(np.interp(0.475 * math.exp(log_mass), below, t))


def resampled_means(values: ArrayLike, *, resamples: int = 2000) -> Floats:
    """Means of `values` (P, …) over P rows drawn with replacement, as often as `resamples`: (resamples, …).

    What lies in one row is drawn together: columns that share their rows are compared in pairs.
    """
    x = np.asarray(values, np.float64)
    rng = np.random.default_rng(0)
    at_once = max(1, 2**18 // x.size)  # few numpy calls, little memory
    draws = (
        rng.integers(0, len(x), (min(at_once, resamples - i), len(x))) for i in range(0, resamples, at_once)
    )
    return np.concatenate([x[rows].mean(axis=1) for rows in draws])


def bootstrap_mean(groups: Sequence[ArrayLike]) -> Estimate:
    """The mean of the groups' means, each group counting the same; problems are resampled within their group.

    >>> bootstrap_mean([[1.0], [0.0, 0.0, 0.0]])
    Estimate(mean=0.5, low=0.5, high=0.5)
    """
    rng = np.random.default_rng(0)
    arrays = [np.asarray(group, np.float64) for group in groups]
    drawn = [[x[rng.integers(0, len(x), len(x))].mean() for x in arrays] for _ in range(2000)]
    low, high = np.quantile(np.mean(drawn, axis=1), [0.025, 0.975])
    return Estimate(float(np.mean([x.mean() for x in arrays])), float(low), float(high))


def pass_at_k(right: ArrayLike, tried: ArrayLike, k: int) -> Floats:
    """The unbiased estimate of the chance that one of k samples is right, per problem (P,).

        1 − C(n − c, k) / C(n, k) = 1 − ∏ⱼ max(n − c − j, 0) / (n − j),   j = 0 … k − 1

    with c of n samples right (Chen et al. 2021, equation 1). The product of ratios cannot overflow. NaN where
    n < k: fewer than k samples say nothing unbiased about k of them.

    >>> pass_at_k([0, 1, 2, 3, 1], [4, 4, 4, 4, 1], k=2).round(3)
    array([0.   , 0.5  , 0.833, 1.   ,   nan])
    """
    c, n = np.asarray(right, np.float64), np.asarray(tried, np.float64)
    all_wrong = np.ones(np.broadcast_shapes(c.shape, n.shape))
    for j in range(k):
        all_wrong *= np.maximum(n - c - j, 0) / np.maximum(n - j, 1)
    return np.where(n >= k, 1 - all_wrong, np.nan)


def ratio(sums: ArrayLike, counts: NDArray[np.integer[Any]]) -> Floats:
    """sums / counts, NaN where the count is 0."""
    return np.divide(sums, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
