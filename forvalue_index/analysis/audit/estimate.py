"""How many rows are wrong, and how many of the most suspicious ones, or that this cannot be told.

Rows are compared with the same prompts after their responses were exchanged: what a wrong row looks
like is then known. If f1 is the share of these exchanged rows beyond a limit, f0 that of the rows
that are right and f that of all rows, the share of wrong rows is (f - f0) / (f1 - f0). Trusted rows
give f0; without them it is taken as 0, and what right rows add is allowed for in the lower bound.

A row that is wrong in another way, such as a false fact in the usual words, is not counted. This
module knows arrays only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST = 30  # rows of a kind that a share is estimated from
_BEYOND = 0.7  # share of the exchanged rows that the limit leaves above it
_LIKE_WRONG = 0.05  # share of right rows that may look exchanged, where no trusted row tells
_SEPARATION = 0.8  # least chance that an exchanged row is above a trusted one, or above any row
_APART = 0.2  # least difference of the shares beyond the limit
_WIDTH = 1.96  # standard errors to either side: 95 %
_FIRST = (10, 50, 100, 500)  # numbers of the most suspicious rows whose precision is told


@dataclass(frozen=True, slots=True)
class Estimate:
    """How many rows have a response that belongs to another prompt.

    `share` is None if that cannot be told: `separation` is too low, or rows are too few.
    """

    rows: int
    share: float | None = None  # of the rows
    low: float | None = None  # of an interval of 95 %
    high: float | None = None
    separation: float | None = (
        None  # chance that an exchanged row looks worse than a trusted (or any) one
    )
    trusted: int = 0  # rows that told how right ones look
    precision: dict[int, float] = field(default_factory=dict)  # k most suspicious -> share wrong

    @property
    def few(self) -> bool:
        """Whether there may be none."""
        return self.low is not None and self.low <= 0


def estimate(
    rows: Floats,
    exchanged: Floats,
    trusted: Floats,
    suspicion: Floats,
    exchanged_suspicion: Floats,
) -> Estimate:
    """Returns how many of n rows are wrong, from signs that are higher for a wrong row.

    Args:
        rows: [n, signs].
        exchanged: [m, signs] of rows whose responses were exchanged.
        trusted: [t, signs] of rows that are right; fewer than 30 are not used.
        suspicion: [n] that the rows are ordered by.
        exchanged_suspicion: [m] the same of the exchanged rows.
    """
    n, m = len(rows), len(exchanged)
    t = len(trusted) if len(trusted) >= LEAST else 0
    if n < LEAST or m < LEAST:
        return Estimate(n)
    all_of, wrong, right = _contrast(rows, exchanged, trusted[:t])
    limit = float(np.quantile(wrong, 1 - _BEYOND))
    f, f1 = float((all_of >= limit).mean()), float((wrong >= limit).mean())
    f0 = float((right >= limit).mean()) if t else 0.0
    # Rows that look like exchanged ones may be wrong, or the signs may say nothing of these rows.
    # Without trusted rows the two are the same, so all rows have to look better.
    separation = _above(wrong, right if t else all_of)
    if separation < _SEPARATION or f1 - f0 < _APART:
        return Estimate(n, separation=separation, trusted=t)
    share = min(max((f - f0) / (f1 - f0), 0.0), 1.0)
    variance = _variance(f, n) + share**2 * _variance(f1, m)
    if t:
        variance += (1 - share) ** 2 * _variance(f0, t)
    width = _WIDTH * variance**0.5 / (f1 - f0)
    low = share - width - (0 if t else _LIKE_WRONG)
    return Estimate(
        n,
        share,
        max(low, 0.0),
        min(share + width, 1.0),
        separation,
        t,
        _precision(share, suspicion, exchanged_suspicion) if low > 0 else {},
    )


def _contrast(rows: Floats, exchanged: Floats, trusted: Floats) -> tuple[Floats, Floats, Floats]:
    """Returns one number for each row of the three kinds: the linear one that tells them best."""
    kinds = [
        np.stack([place_among(rows[:, i], kind[:, i]) for i in range(rows.shape[1])], 1)
        for kind in (rows, exchanged, trusted)
    ]
    means = [kind.mean(0) for kind in kinds[:2]]
    spread = sum(
        (kind - mean).T @ (kind - mean) / len(kind)
        for kind, mean in zip(kinds[:2], means, strict=True)
    )
    direction = np.linalg.solve(spread + 1e-6 * np.eye(rows.shape[1]), means[1] - means[0])
    one, two, three = (kind @ direction for kind in kinds)
    return one, two, three


def _precision(share: float, suspicion: Floats, exchanged: Floats) -> dict[int, float]:
    """Returns the share of wrong rows among the k most suspicious, for several k.

    Few of the exchanged rows are among the first k if k is small, so that their share is uncertain.
    It is taken to be at least that of a larger k.
    """
    ordered, found, least = np.sort(suspicion)[::-1], {}, 0.0
    for k in reversed([k for k in _FIRST if k <= len(ordered) / 2]):
        beyond = float((exchanged >= ordered[k - 1]).mean())
        found[k] = least = max(least, min(1.0, share * beyond * len(ordered) / k))
    return dict(sorted(found.items()))


def place_among(among: Floats, values: Floats) -> Floats:
    """Returns the share of the values `among` that is below each value, ties counting half."""
    ordered = np.sort(among)
    both = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return np.asarray(both / (2 * len(among)), np.float64)


def _above(one: Floats, other: Floats) -> float:
    """Returns the chance that one of the first is above one of the second."""
    return float(place_among(other, one).mean())


def _variance(share: float, n: int) -> float:
    """Returns the variance of a share counted in n rows, not 0 where none or all were found."""
    smooth = (share * n + 1) / (n + 2)
    return smooth * (1 - smooth) / n
