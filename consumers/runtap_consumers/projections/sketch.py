"""Latency sketches: mergeable histograms of log-spaced buckets, 50 an octave, relative error at most 1 %.

Stored as little-endian 32-bit words, `bucket << 20 | count`, in no order; a bucket may occur more than once, so that
concatenating two blobs merges them. Bucket: `octave * 50 + (ns * 50 >> (octave - 1))` with `octave = ns.bit_length()`,
integers only, the same on every machine.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator
from itertools import repeat

_COUNT_BITS = 20
_FULL = (1 << _COUNT_BITS) - 1


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
    """A sketch that grows, in its stored form. What is counted is appended, and added up by bucket now and then, since
    to find each bucket's word takes three times as long.
    """

    __slots__ = ("_most", "_words")

    def __init__(self, blob: bytes | None = None) -> None:
        self._words = array("I", blob or b"")
        if sys.byteorder == "big":
            self._words.byteswap()
        self._most = _most_words(self._words)

    def add(self, buckets: Iterable[int]) -> None:
        """Counts one occurrence of each bucket."""
        self._words.extend([bucket << _COUNT_BITS | 1 for bucket in buckets])
        if len(self._words) > self._most:
            counts: dict[int, int] = {}
            for word in self._words:
                bucket = word >> _COUNT_BITS
                counts[bucket] = counts.get(bucket, 0) + (word & _FULL)
            self._words = array("I", _words_of(counts))
            self._most = _most_words(self._words)

    def to_bytes(self) -> bytes:
        """The stored form."""
        if sys.byteorder == "big":
            swapped = array("I", self._words)
            swapped.byteswap()
            return swapped.tobytes()
        return self._words.tobytes()


def _most_words(words: array[int]) -> int:
    return len(words) * 3 // 2 + 32


def _words_of(counts: dict[int, int]) -> Iterator[int]:
    for bucket, count in counts.items():
        whole, rest = divmod(count, _FULL)
        yield from repeat(bucket << _COUNT_BITS | _FULL, whole)
        if rest:
            yield bucket << _COUNT_BITS | rest


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
