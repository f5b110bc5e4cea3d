"""The log of the Kafka client: the only place where it says why it cannot connect, and up to 1,900 lines a second."""

from __future__ import annotations

import logging
import time
from collections import deque

REPEAT_SECONDS = 10.0
_KEPT = 50
_NAME = "aiokafka"
# Logs the same subscription every few seconds.
_CHATTERER = "aiokafka.consumer.subscription_state"


class ClientLog(logging.Filter):
    """Lets each kind of message through once in `REPEAT_SECONDS`, and remembers the last warnings and errors."""

    def __init__(self) -> None:
        super().__init__()
        self.is_silent = False
        self._recent: deque[tuple[float, int, str]] = deque(maxlen=_KEPT)
        self._let_through: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record; called by `logging` in any thread."""
        now = time.monotonic()
        # The client's remark on PLAIN passwords comes with every connection and is no reason for anything.
        if record.levelno >= logging.WARNING and "in the clear" not in str(record.msg):
            self._recent.append((now, record.levelno, record.getMessage()))
        elif record.name == _CHATTERER:
            return False
        kind = (record.name, str(record.msg))
        if self.is_silent or now - self._let_through.get(kind, float("-inf")) < REPEAT_SECONDS:
            return False
        if len(self._let_through) > 1_000:
            # Some messages are formatted before they are logged, and would fill the memory as a kind each.
            self._let_through.clear()
        self._let_through[kind] = now
        return True

    def reason_since(self, monotonic_seconds: float) -> str | None:
        """The first error since then, or else the first warning; what follows is mostly its echo."""
        found = [(-level, at, message) for at, level, message in list(self._recent) if at >= monotonic_seconds]
        return min(found)[2] if found else None


_log = ClientLog()


def watch_client_log(is_silent: bool | None = None) -> ClientLog:
    """Rate-limits the client's loggers, and returns what remembers their messages. May be called any number of times.

    Args:
        is_silent: show nothing at all, for commands that print the reason themselves; `None` leaves it as it is.
    """
    if is_silent is not None:
        _log.is_silent = is_silent
    # A logger's filter does not see what its children log.
    for name in [_NAME, *logging.root.manager.loggerDict]:
        if name == _NAME or name.startswith(f"{_NAME}."):
            logging.getLogger(name).addFilter(_log)
    return _log
