"""Confidence intervals of scores. Knows numbers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z95 = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


def wilson(successes: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927): stays inside [0, 1] and has a width at 0 of n and n of n too.

    Args:
        successes: how many were right; the sum of partial scores does as well, and is then on the wide side.
        n: how many were tried; 0 gives (0, 1), since nothing is known.
        z: the normal quantile.

    Raises:
        ValueError: `successes` outside of [0, n].
    """
    if n < 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no share")
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    centre = share + z * z / (2 * n)
    # At the ends the algebra gives exactly 0 and 1; floating point misses them by an ulp.
    low = 0.0 if successes == 0 else max(0.0, (centre - spread) / scale)
    high = 1.0 if successes == n else min(1.0, (centre + spread) / scale)
    return low, high


def ratio_interval(totals: Sequence[float], counts: Sequence[float], z: float = Z95) -> tuple[float, float | None, float | None]:
    """Total over count with its normal interval, where the independent units are groups (documents), not the items in them.

    Tokens of one document are not independent: an interval over tokens would be far too narrow. The variance is the
    linearised one of a ratio estimator over groups.

    Returns:
        value, low, high; no ends where there is one group alone, which says nothing of how groups differ.
    """
    count = math.fsum(counts)
    if not counts or count <= 0:
        raise ValueError("nothing was counted")
    value = math.fsum(totals) / count
    groups = len(counts)
    if groups < 2:
        return value, None, None
    square = math.fsum((t - value * c) ** 2 for t, c in zip(totals, counts, strict=True))
    error = math.sqrt(square * groups / (groups - 1)) / count
    return value, value - z * error, value + z * error


def paired_difference(first: Sequence[float], second: Sequence[float], z: float = Z95) -> tuple[float, float, float]:
    """How much better `second` scored than `first` on the same questions, with its normal interval.

    Pairing takes out how hard each question is, so two models are told apart by fewer questions than two single intervals need.

    Returns:
        mean difference, low, high; of a single question nothing is known but [-1, 1].

    Raises:
        ValueError: no questions, or not the same number.
    """
    n = len(first)
    if n == 0 or n != len(second):
        raise ValueError("scores of the same questions are needed")
    differences = [b - a for a, b in zip(first, second, strict=True)]
    mean = math.fsum(differences) / n
    if n == 1:
        return mean, -1.0, 1.0
    error = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    return mean, max(-1.0, mean - z * error), min(1.0, mean + z * error)


def rank_interval(correlation: float, n: int, z: float = Z95) -> tuple[float, float]:
    """The interval of a rank correlation by Fisher's transformation, with the variance of Fieller, Hartley and Pearson (1957).

    Args:
        correlation: Spearman's, of n pairs.
        n: how many pairs; up to 3 say nothing.
        z: the normal quantile.

    Returns:
        low, high; an order without a fault has no width, since the formula has none to give.
    """
    if n <= 3:
        return -1.0, 1.0
    if abs(correlation) >= 1:
        return correlation, correlation
    centre, error = math.atanh(correlation), math.sqrt(1.06 / (n - 3))
    return math.tanh(centre - z * error), math.tanh(centre + z * error)
