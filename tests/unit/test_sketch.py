"""Latency sketches: error, merging, full counts."""

from __future__ import annotations

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


def test_a_full_count_begins_a_second_word() -> None:
    sketch = Sketch()
    sketch.add([7] * (2**20 + 5))
    sketch.add([9])
    assert len(sketch.to_bytes()) == 12
    assert quantiles_ns(sketch.to_bytes(), [0.5, 1.0]) == [bucket_value_ns(7), bucket_value_ns(9)]
    # Read back, it goes on in the word that has room.
    again = Sketch(sketch.to_bytes())
    again.add([7])
    assert len(again.to_bytes()) == 12


def test_many_at_once_count_as_one_by_one() -> None:
    durations = [int(10**9 * 1.001 ** (number % 777)) for number in range(10_000)]
    at_once, one_by_one = Sketch(), Sketch()
    at_once.add([bucket_of(duration) for duration in durations])
    for duration in durations:
        one_by_one.add([bucket_of(duration)])
    assert sorted(at_once.to_bytes()) == sorted(one_by_one.to_bytes())
    fractions = [0, 0.25, 0.5, 0.99, 1]
    assert quantiles_ns(at_once.to_bytes(), fractions) == quantiles_ns(one_by_one.to_bytes(), fractions)


def test_many_at_once_do_not_overflow_a_count() -> None:
    sketch = Sketch()
    for _ in range(2**20 // 10_000 + 1):
        sketch.add([7] * 10_000)
    sketch.add([9])
    assert len(sketch.to_bytes()) == 12
    assert quantiles_ns(sketch.to_bytes(), [0.5, 1.0]) == [bucket_value_ns(7), bucket_value_ns(9)]


def test_nothing_counted_has_no_quantile() -> None:
    assert quantiles_ns(b"", [0.5, 0.99]) == [None, None]
