"""Latency sketches: mergeable histograms of log-spaced buckets, 50 an octave, relative error at most 1 %.

Stored as little-endian 32-bit words, `bucket << 20 | count`, in no order; a bucket may occur more than once, so that
concatenating two blobs merges them. Bucket: `octave * 50 + (ns * 50 >> (octave - 1))` with `octave = ns.bit_length()`,
integers only, the same on every machine.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import repeat

_COUNT_BITS = 20
_FULL = (1 << _COUNT_BITS) - 1
# From so many durations on, counting them by bucket first is quicker.
_WORTH_COUNTING = 300


def bucket_of(duration_ns: int) -> int:
    """The bucket of a duration; 0 counts as 1 ns."""
    octave = duration_ns.bit_length()
    if octave == 0:
        return 100
    return octave * 50 + (duration_ns * 50 >> (octave - 1))


def bucket_value_ns(bucket: int) -> float:
    """The value that stands for a bucket: 2ab / (a + b) of its ends, which halves the largest relative error."""
    octave, step = divmod(bucket - 50, 50)
    low = (50 + step) * 2.0 ** (octave - 1) / 50
    high = (51 + step) * 2.0 ** (octave - 1) / 50
    return 2 * low * high / (low + high)


class Sketch:
    """A sketch that grows: the stored form, and where in it each bucket lies."""

    __slots__ = ("_indexes", "_words")

    def __init__(self, blob: bytes | None = None) -> None:
        self._words = array("I", blob or b"")
        if sys.byteorder == "big":
            self._words.byteswap()
        self._indexes = {word >> _COUNT_BITS: index for index, word in enumerate(self._words)}

    def add(self, buckets: Collection[int]) -> None:
        """Counts one occurrence of each bucket."""
        words, indexes = self._words, self._indexes
        is_worth_it = _WORTH_COUNTING <= len(buckets) <= _FULL
        counts = Counter(buckets).items() if is_worth_it else zip(buckets, repeat(1), strict=False)
        for bucket, count in counts:
            index = indexes.get(bucket)
            if index is None or ((word := words[index]) & _FULL) + count > _FULL:
                indexes[bucket] = len(words)
                words.append(bucket << _COUNT_BITS | count)
            else:
                words[index] = word + count

    def to_bytes(self) -> bytes:
        """The stored form."""
        if sys.byteorder == "big":
            swapped = array("I", self._words)
            swapped.byteswap()
            return swapped.tobytes()
        return self._words.tobytes()


def quantiles_ns(blob: bytes, fractions: Iterable[float]) -> list[float | None]:
    """Quantiles of a sketch, or of several concatenated, at fractions of 0 to 1; `None` where nothing was counted."""
    wanted = list(fractions)
    if not blob:
        return [None] * len(wanted)
    # Workers need no numpy, which takes 0.1 s to load.
    import numpy as np

    words = np.frombuffer(blob, dtype="<u4")
    counts = np.bincount(words >> _COUNT_BITS, weights=words & _FULL)
    cumulated = np.cumsum(counts)
    total = cumulated[-1]
    ranks = [min(max(fraction * (total - 1), 0), total - 1) for fraction in wanted]
    return [bucket_value_ns(int(np.searchsorted(cumulated, rank, side="right"))) for rank in ranks]
