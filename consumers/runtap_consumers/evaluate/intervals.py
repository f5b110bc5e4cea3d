"""Whether two experiments differ: the interval of a mean of paired differences, whose witnesses come in sessions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

# Of two prompts that differ by nothing fewer than 1 in 20 may be told apart. Scores that are no bell curves, of few
# sessions that differ in size, are so up to 1.5 times as often as an interval says (simulated).
_ERROR_RATE = 0.03
# That a difference of the least size that could be seen is seen.
_POWER = 0.8
# Of fewer that all agree, chance makes too many: 2 / 2^5 > 0.05.
_LEAST_CLUSTERS = 6


class Difference(NamedTuple):
    """The mean of paired differences, and the interval it lies in; `least_seen`: what would have been told from 0 in
    80 of 100 tries. `None`: there are too few, of examples or of sessions.
    """

    difference: float | None
    low: float | None
    high: float | None
    least_seen: float | None
    verdict: str


def paired_difference(pairs: Sequence[tuple[str, float]], comparisons: int = 1) -> Difference:
    """The difference of pairs, each with what it hangs together with (its session, or its example).

    The variance is the jackknife over clusters, which errs on the wide side where they differ in size; Student's
    quantiles are for as many as there are of them (MacKinnon, Nielsen, Webb: Cluster-robust inference, 2023).

    Args:
        pairs: cluster and difference.
        comparisons: of so many at once, all intervals together hold in 97 of 100 tries (Bonferroni).
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for cluster, difference in pairs:
        sums[cluster][0] += difference
        sums[cluster][1] += 1
    if not pairs:
        return Difference(None, None, None, None, "")
    total, count, clusters = sum(each for _, each in pairs), len(pairs), len(sums)
    mean = total / count
    if clusters < _LEAST_CLUSTERS:
        return Difference(mean, None, None, None, "too few to tell")
    without = [(total - part) / (count - size) for part, size in sums.values()]
    error = sqrt((clusters - 1) / clusters * sum((each - mean) ** 2 for each in without))
    reach = student_quantile(1 - _ERROR_RATE / comparisons / 2, clusters - 1)
    low, high = mean - reach * error, mean + reach * error
    verdict = "higher" if low > 0 else "lower" if high < 0 else "no difference seen"
    return Difference(mean, low, high, (reach + student_quantile(_POWER, clusters - 1)) * error, verdict)


def student_quantile(probability: float, freedom: int) -> float:
    """Student's t by the expansion of Cornish and Fisher: to three digits from 5 degrees of freedom on."""
    z, n = NormalDist().inv_cdf(probability), freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )
