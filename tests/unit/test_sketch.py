"""Latency sketches: error, merging, full counts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtap_consumers.projections.sketch import Sketch, bucket_of, bucket_value_ns, quantiles_ns


@given(st.integers(1, 2**62))
def test_value_of_a_bucket_is_within_one_percent(duration_ns: int) -> None:
    assert bucket_value_ns(bucket_of(duration_ns)) == pytest.approx(duration_ns, rel=0.01)


@given(st.integers(0, 2**62 - 1))
def test_buckets_are_in_the_order_of_durations(duration_ns: int) -> None:
    assert bucket_of(duration_ns) <= bucket_of(duration_ns + 1)


@given(st.lists(st.integers(0, 10**12), min_size=1), st.lists(st.integers(0, 10**12)))
def test_concatenated_sketches_are_the_sketch_of_both(first: list[int], second: list[int]) -> None:
    apart = b""
    for durations in (first, second):
        sketch = Sketch()
        sketch.add([bucket_of(duration) for duration in durations])
        apart += sketch.to_bytes()
    together = Sketch()
    together.add([bucket_of(duration) for duration in first + second])
    fractions = [0, 0.5, 0.95, 0.99, 1]
    assert quantiles_ns(apart, fractions) == quantiles_ns(together.to_bytes(), fractions)


def counts_of(blob: bytes) -> Counter[int]:
    """Occurrences by bucket."""
    counts: Counter[int] = Counter()
    for word in memoryview(blob).cast("I"):
        counts[word >> 20] += word & 0xFFFFF
    return counts


def test_a_full_count_begins_a_second_word() -> None:
    sketch = Sketch()
    sketch.add([7] * (2**20 + 5))
    assert len(sketch.to_bytes()) == 8
    sketch.add([9])
    again = Sketch(sketch.to_bytes())
    again.add([7])
    assert counts_of(again.to_bytes()) == {7: 2**20 + 6, 9: 1}
    assert quantiles_ns(again.to_bytes(), [0.5, 1.0]) == [bucket_value_ns(7), bucket_value_ns(9)]


@given(st.lists(st.lists(st.integers(100, 140), max_size=60), max_size=60))
def test_whatever_is_counted_is_there_and_words_that_repeat_a_bucket_are_few(batches: list[list[int]]) -> None:
    sketch, wanted = Sketch(), Counter[int]()
    for batch in batches:
        sketch.add(batch)
        wanted.update(batch)
        if len(wanted) % 2:
            # Another worker goes on with what is stored.
            sketch = Sketch(sketch.to_bytes())
        assert counts_of(sketch.to_bytes()) == wanted
    for _ in range(100):
        sketch.add([120])
    assert len(sketch.to_bytes()) <= 4 * (1.5 * len(wanted | Counter([120])) + 32)


def test_nothing_counted_has_no_quantile() -> None:
    assert quantiles_ns(b"", [0.5, 0.99]) == [None, None]
