"""A partition that the group has assigned to this worker, and when it is to be tried again."""

from __future__ import annotations

import math
import random
import sys
import time
from dataclasses import dataclass, field

from runtap_consumers.kafka.records import KafkaRecord
from runtap_consumers.worker.decoding import Refused, count_events
from runtap_consumers.worker.partition import Partition

BACKOFF_SECONDS = 0.2
_LONGEST_BACKOFF_SECONDS = 5.0
# More fences in a row than this are no rebalance: another set of workers moves a projection on the same store.
FENCES_OF_A_REBALANCE = 3
LONGEST_FENCED_BACKOFF_SECONDS = 60.0


class LogUnsettledError(Exception):
    """The log was another one each time that it was looked at."""


@dataclass
class Assigned:
    """A partition in hand. `partition`: `None` until it is loaded. `events`: how many `records` hold, `size`: bytes."""

    partition: Partition | None = None
    records: list[KafkaRecord] = field(default_factory=list)
    events: int = 0
    size: int = 0
    # As last polled: what is asked for is counted in records.
    events_a_record: int = 1
    since: float = 0.0
    checked: float = 0.0
    end_noted: float = -math.inf
    log_start_read: float = -math.inf
    # Before this offset is a record that makes a batch fail.
    suspect_end: int = 0
    refused: Refused = field(default_factory=dict)
    # Records of which every event was refused, one after the other.
    refused_in_a_row: int = 0
    # Failures in a row, and how many of them were fences.
    failures: int = 0
    fences: int = 0
    retry_at: float = 0.0

    def forget(self) -> None:
        """Throws all memory away: what counts stands in the store."""
        self.partition = None
        self.let_go()
        self.log_start_read = self.end_noted = -math.inf

    def hold(self, polled: list[KafkaRecord]) -> None:
        """Adds what was polled to what will be committed together."""
        if polled:
            if not self.records:
                self.since = time.monotonic()
            events = sum(map(count_events, polled))
            self.records += polled
            self.size += sum(len(record.value or b"") for record in polled)
            self.events += events
            self.events_a_record = max(events // len(polled), 1)

    @property
    def at_most(self) -> int:
        """How many records a batch may have: half of those among which one is suspected."""
        if self.partition is None or self.partition.next_offset >= self.suspect_end:
            return sys.maxsize
        return max((self.suspect_end - self.partition.next_offset) // 2, 1)

    def lags(self, log_end: int | None) -> dict[str, int]:
        """How many records each projection has before it; empty while that is not known."""
        if self.partition is None or log_end is None:
            return {}
        cursors = self.partition.cursors
        return {name: max(log_end - each.next_offset, 0) for each in cursors for name in each.projections}

    def let_go(self) -> None:
        """Drops the records in hand."""
        self.records, self.events, self.size = [], 0, 0

    def back_off(self, *, is_fenced: bool = False) -> None:
        """Delays the next attempt, longer after each failure in a row."""
        self.failures += 1
        self.fences += is_fenced
        bound = _LONGEST_BACKOFF_SECONDS
        if self.fences > FENCES_OF_A_REBALANCE:
            bound = LONGEST_FENCED_BACKOFF_SECONDS
        longest = min(BACKOFF_SECONDS * 2**self.failures, bound)
        self.retry_at = time.monotonic() + BACKOFF_SECONDS + random.uniform(0, longest)
