"""What came of an HTTP request to somebody else's server, and how long to wait before the next one."""

from __future__ import annotations

import random
import time
from email.utils import parsedate_to_datetime
from typing import NamedTuple

SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
# What a receiver may ask for with Retry-After.
LONGEST_ASKED_SECONDS = 3_600.0
# Too late, too early, too many. Of all others below 500 the same request would only be refused again.
_TRANSIENT = frozenset({408, 425, 429})


class Reply(NamedTuple):
    """What came of a request. `status` is `None` where no answer came, and `reason` says why."""

    status: int | None
    reason: str
    retry_after: str | None = None

    @property
    def is_delivered(self) -> bool:
        """Whether the receiver has it."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_transient(self) -> bool:
        """Whether the same request may be taken later."""
        return self.status is None or self.status >= 500 or self.status in _TRANSIENT


def pause_seconds(failures: int, retry_after: str | None = None) -> float:
    """How long to wait after so many failures in a row: twice as long each time, up to a minute, half of it by chance;
    longer if the receiver asks for it.
    """
    longest = min(LONGEST_PAUSE_SECONDS, SHORTEST_PAUSE_SECONDS * 2 ** min(failures - 1, 16))
    return max(random.uniform(longest / 2, longest), min(_asked_seconds(retry_after or ""), LONGEST_ASKED_SECONDS))


def _asked_seconds(retry_after: str) -> float:
    """Of a number of seconds or an HTTP date; 0 for anything else."""
    if retry_after.isascii() and retry_after.isdecimal():
        return float(retry_after)
    try:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
