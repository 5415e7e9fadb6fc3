"""A rank test for response times that are measured in rounds.

The times of one round are not independent: another process can slow a whole round down. A Mann-Whitney test of all
times would report such a round as a difference. This test therefore compares the sum of ranks with the sums after
random exchanges of the two samples within each round. Every exchange is equally likely if the samples do not differ.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

EXCHANGES = 10_000
RESAMPLES = 100  # for the power
SHIFTS = (1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200)  # milliseconds

Rounds = Sequence[Sequence[float]]  # the times of each round, in seconds; all rounds have the same number of times


def favour(first: Rounds, second: Rounds) -> float:
    """Return Mann-Whitney's U / (n m): the share of pairs with a longer time in `first`; a tie counts half."""
    n, m = (sum(map(len, rounds)) for rounds in (first, second))
    below = sum(map(sum, _ranks(first, second)[0])) - n * (n + 1) / 2
    return below / (n * m)


def p_value(first: Rounds, second: Rounds, seed: int = 1) -> float:
    """Return the probability of a rank sum that differs at least as much, if there is no difference."""
    draw = random.Random(seed)
    ranks = _ranks(first, second)
    differences = [sum(a) - sum(b) for a, b in zip(*ranks, strict=True)]
    seen = abs(sum(differences))
    as_large = sum(
        abs(sum(d if draw.random() < 0.5 else -d for d in differences)) >= seen - 1e-9 for _ in range(EXCHANGES)
    )
    return (as_large + 1) / (EXCHANGES + 1)


def detectable(first: Rounds, second: Rounds, alpha: float, power: float = 0.9) -> int | None:
    """Return the least of SHIFTS (milliseconds) that the test finds with the probability `power`, or None.

    Draw rounds from the measured rounds, exchange the two samples at random, and add the shift to one sample.
    """
    draw = random.Random(2)
    for shift in SHIFTS:
        found = 0
        for _ in range(RESAMPLES):
            pairs = [draw.choice(list(zip(first, second, strict=True))) for _ in first]
            pairs = [pair if draw.random() < 0.5 else pair[::-1] for pair in pairs]
            shifted = [[time + shift / 1000 for time in b] for _, b in pairs]
            found += _rejects([a for a, _ in pairs], shifted, alpha)
        if found >= power * RESAMPLES:
            return shift
    return None


def _rejects(first: Rounds, second: Rounds, alpha: float) -> bool:
    """Return True if the p-value is below `alpha`, by the normal approximation of the exchanges."""
    ranks = _ranks(first, second)
    differences = [sum(a) - sum(b) for a, b in zip(*ranks, strict=True)]
    deviation = math.sqrt(sum(d * d for d in differences))
    limit = next(z for z, p in ((1.96, 0.05), (2.576, 0.01), (3.291, 0.001)) if p <= alpha)
    return deviation > 0 and abs(sum(differences)) > limit * deviation


def _ranks(first: Rounds, second: Rounds) -> tuple[list[list[float]], list[list[float]]]:
    """Return the rank of each time among all times, from 1; equal times have their mean rank."""
    ordered = sorted(time for rounds in (first, second) for times in rounds for time in times)
    rank: dict[float, float] = {}
    at = 0
    while at < len(ordered):
        end = at
        while end < len(ordered) and ordered[end] == ordered[at]:
            end += 1
        rank[ordered[at]] = (at + 1 + end) / 2
        at = end
    return ([[rank[t] for t in times] for times in first], [[rank[t] for t in times] for times in second])
