"""Partitions of keys, beside aiokafka's own hash."""

from __future__ import annotations

from aiokafka.partitioner import murmur2
from hypothesis import given
from hypothesis import strategies as st

from runtap_collector.send.partitions import partition_of, partitions_of


@given(st.lists(st.binary(max_size=80), max_size=60), st.integers(1, 1_000))
def test_keys_of_any_lengths_go_where_kafkas_clients_put_them(keys: list[bytes], partition_count: int) -> None:
    expected = [(murmur2(bytearray(key)) & 0x7FFFFFFF) % partition_count for key in keys]
    assert partitions_of(keys, partition_count) == expected
    assert [partition_of(key, partition_count) for key in keys] == expected


def test_hashes_are_those_that_kafkas_own_tests_name() -> None:
    # org.apache.kafka.common.utils.UtilsTest.testMurmur2
    named = {
        b"21": -973932308,
        b"foobar": -790332482,
        b"a-little-bit-long-string": -985981536,
        b"a-little-bit-longer-string": -1486304829,
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
        b"abc": 479470107,
    }
    count = 2**31
    assert partitions_of(list(named), count) == [hashed & 0x7FFFFFFF for hashed in named.values()]
