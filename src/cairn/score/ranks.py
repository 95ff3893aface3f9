"""How far two lists of numbers stand in the same order: Spearman's rank correlation. Pure functions of numbers; know no model."""

from __future__ import annotations

from collections.abc import Sequence


def ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value, from 1; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    out = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for i in order[start:end]:
            out[i] = (start + 1 + end) / 2
        start = end
    return out


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson's correlation of the ranks, between -1 and 1 (Spearman 1904, ties by mean ranks); None where one list is constant.

    Raises:
        ValueError: lists of different lengths.
    """
    x, y = ranks(a), ranks(b)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} values have no correlation")
    middle = (len(x) + 1) / 2
    products = [sum((p - middle) * (q - middle) for p, q in zip(u, v, strict=True)) for u, v in ((x, y), (x, x), (y, y))]
    return None if not products[1] or not products[2] else products[0] / (products[1] * products[2]) ** 0.5
