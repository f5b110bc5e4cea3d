"""Where a tail stands in each partition, kept in a file: one that is started again goes on there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from runtap_consumers.errors import InputError


class Place(NamedTuple):
    """The offset to go on with, and the log time of the record before it, by which its log is known again; `None`: no
    record was read yet.
    """

    next_offset: int
    log_time_ns: int | None


class _Kept(msgspec.Struct):
    topic: str
    partitions: dict[int, Place]


class Places:
    """The places of one topic. Each is written when a record has been dealt with: killed just before that, a process
    leaves one record that comes again, and never one that was skipped.
    """

    def __init__(self, path: Path, topic: str) -> None:
        """Raises:
        InputError: the file cannot be read or written.
        """
        self._path = path
        self._topic = topic
        self._length = 0
        self.places: dict[int, Place] = {}
        try:
            kept = path.read_bytes() if path.exists() else b""
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._refusal(error) from error
        if kept:
            self._load(kept)

    def _load(self, kept: bytes) -> None:
        self._length = len(kept)
        try:
            found = msgspec.json.decode(kept, type=_Kept)
        except msgspec.DecodeError as error:
            os.close(self._descriptor)
            raise InputError(
                f"cannot read {str(self._path)!r}: {error}. Remove it, and the archive goes on with the next event"
            ) from error
        if found.topic == self._topic:
            self.places = found.partitions

    def begin(self, offsets: Mapping[int, int]) -> None:
        """Notes where every partition begins, before anything is read: what comes while nobody reads is read later."""
        before = self.places
        self.places = {
            number: before[number] if number in before and before[number].next_offset == offset else Place(offset, None)
            for number, offset in offsets.items()
        }
        self._write()

    def move(self, partition: int, offset: int, log_time_ns: int) -> None:
        """Notes that a record has been dealt with.

        Raises:
            InputError: the file cannot be written any more.
        """
        self.places[partition] = Place(offset + 1, log_time_ns)
        self._write()

    def _write(self) -> None:
        # Over the old one, in one call, and padded: nothing of a longer one stays behind it.
        line = msgspec.json.encode(_Kept(self._topic, self.places)).ljust(self._length)
        self._length = len(line)
        try:
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, line)
        except OSError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: OSError) -> InputError:
        return InputError(f"cannot write {str(self._path)!r}: {error.strerror}. Name another file, or make room")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
