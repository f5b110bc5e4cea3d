"""A partition that the group has assigned to this worker, and when it is to be tried again."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, field

from runtap_consumers.kafka.records import KafkaRecord
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
    """An assigned partition. `partition` is `None` until it is loaded."""

    partition: Partition | None = None
    records: list[KafkaRecord] = field(default_factory=list)
    since: float = 0.0
    checked: float = 0.0
    log_start_read: float = -math.inf
    # Failures in a row, and how many of them were fences.
    failures: int = 0
    fences: int = 0
    retry_at: float = 0.0

    def forget(self) -> None:
        """Throws all memory away: what counts stands in the store."""
        self.partition = None
        self.records = []
        self.log_start_read = -math.inf

    def back_off(self, *, is_fenced: bool = False) -> None:
        """Delays the next attempt, longer after each failure in a row."""
        self.failures += 1
        self.fences += is_fenced
        bound = _LONGEST_BACKOFF_SECONDS
        if self.fences > FENCES_OF_A_REBALANCE:
            bound = LONGEST_FENCED_BACKOFF_SECONDS
        longest = min(BACKOFF_SECONDS * 2**self.failures, bound)
        self.retry_at = time.monotonic() + BACKOFF_SECONDS + random.uniform(0, longest)
