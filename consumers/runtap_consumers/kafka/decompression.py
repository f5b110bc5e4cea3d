"""Decompressing record batches, with a limit: a kilobyte may hold a gigabyte.

The client decompresses inside, by functions that its record modules look up by name; `limit_decompression` puts others
in their place. Snappy says how much it holds, gzip is read up to the limit, lz4 and zstd are written into a buffer.
"""

from __future__ import annotations

import importlib
import struct
import zlib
from typing import Any

import cramjam

MAX_BATCH_BYTES = 16 * 2**20
# Of all batches that one poll decompresses.
MAX_POLL_BYTES = 64 * 2**20
_RECORD_MODULES = tuple(
    f"aiokafka.record.{part}{name}_records" for part in ("", "_crecords.") for name in ("default", "legacy")
)
# The header with which Xerial's framing of snappy begins.
_XERIAL = b"\x82SNAPPY\x00"


class BatchTooLargeError(Exception):
    """A batch expands to more than `MAX_BATCH_BYTES`."""

    def __init__(self) -> None:
        super().__init__(f"the batch expands to more than {MAX_BATCH_BYTES:,} bytes")


class PollTooLargeError(Exception):
    """The batches of a poll expand to more than `MAX_POLL_BYTES`: poll less at once."""


class _Decompression:
    """The functions that take the client's places. `held`: bytes that they made since the poll began."""

    held = 0

    def gzip_decode(self, payload: Any) -> bytes:
        return self._counted(zlib.decompressobj(wbits=31).decompress(bytes(payload), MAX_BATCH_BYTES + 1))

    def snappy_decode(self, payload: Any) -> bytes:
        data = bytes(payload)
        if not data.startswith(_XERIAL):
            return self._snappy([data])
        blocks, place = [], 16
        while place < len(data):
            (size,) = struct.unpack_from("!i", data, place)
            blocks.append(data[place + 4 : place + 4 + size])
            place += 4 + size
        return self._snappy(blocks)

    def _snappy(self, blocks: list[bytes]) -> bytes:
        if sum(map(cramjam.snappy.decompress_raw_len, blocks)) > MAX_BATCH_BYTES:
            raise BatchTooLargeError
        return self._counted(b"".join(bytes(cramjam.snappy.decompress_raw(block)) for block in blocks))

    def lz4_decode(self, payload: Any) -> bytes:
        return self._into(cramjam.lz4.decompress_into, payload)

    def zstd_decode(self, payload: Any) -> bytes:
        return self._into(cramjam.zstd.decompress_into, payload)

    def _into(self, decompress_into: Any, payload: Any) -> bytes:
        # Its pages are the system's until they are written to.
        room = memoryview(bytearray(MAX_BATCH_BYTES))
        try:
            size = decompress_into(bytes(payload), room)
        except cramjam.DecompressionError as error:
            # What is raised holds this frame, and a worker looks for cycles seldom.
            del room
            if "whole buffer" in str(error):
                raise BatchTooLargeError from None
            raise
        return self._counted(bytes(room[:size]))

    def _counted(self, found: bytes) -> bytes:
        size = len(found)
        self.held += size
        if size <= MAX_BATCH_BYTES and self.held <= MAX_POLL_BYTES:
            return found
        del found
        raise BatchTooLargeError if size > MAX_BATCH_BYTES else PollTooLargeError


_decompression = _Decompression()


def limit_decompression() -> None:
    """Limits what every consumer of this process decompresses."""
    for module_name in _RECORD_MODULES:
        module = importlib.import_module(module_name)
        for name in ("gzip_decode", "snappy_decode", "lz4_decode", "zstd_decode"):
            if hasattr(module, name):
                setattr(module, name, getattr(_decompression, name))


def begin_poll() -> None:
    """Counts bytes from here on."""
    _decompression.held = 0


def end_of_batch(error: BaseException) -> int | None:
    """The offset after the batch on which the client raised: its iterator has it, and nothing else tells."""
    trace = error.__traceback__
    while trace is not None:
        batch = trace.tb_frame.f_locals.get("next_batch")
        if batch is not None:
            return int(batch.next_offset)
        trace = trace.tb_next
    return None
