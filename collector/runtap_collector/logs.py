"""The collector's log lines: structlog events over the standard library's logger `runtap_collector`.

The app owns the configuration of logging, and structlog's too: nothing here depends on either or changes it. A process
that configured none sees warnings on stderr, as with any library.
"""

from __future__ import annotations

import logging
import time
import traceback
from typing import Any

import structlog

from runtap_schemas.masking import mask_log_event

_REPEAT_SECONDS = 60.0


def _where(exc_info: structlog.typing.ExcInfo) -> str:
    # Without its message and its causes', which may quote what people wrote.
    kind, _, where = exc_info
    return f"{''.join(traceback.format_tb(where))}{kind.__name__}"


log: structlog.stdlib.BoundLogger = structlog.wrap_logger(
    logging.getLogger("runtap_collector"),
    wrapper_class=structlog.stdlib.BoundLogger,
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.processors.ExceptionRenderer(_where),
        mask_log_event,
        structlog.processors.KeyValueRenderer(key_order=["event"]),
    ],
)


class RareLog:
    """Writes each kind of warning at most once a minute, and says how many were held back.

    Without a lock, which a fork could leave held for ever: two threads may at worst both write.
    """

    def __init__(self, repeat_seconds: float = _REPEAT_SECONDS) -> None:
        self._repeat_seconds = repeat_seconds
        self._last: dict[str, float] = {}
        self._held_back: dict[str, int] = {}

    def warn(self, event: str, **fields: Any) -> None:
        """Writes `event`, unless one of the same name was written within the interval."""
        now = time.monotonic()
        if now - self._last.get(event, -self._repeat_seconds) < self._repeat_seconds:
            self._held_back[event] = self._held_back.get(event, 0) + 1
            return
        self._last[event] = now
        held_back = self._held_back.pop(event, 0)
        if held_back:
            fields["held_back"] = held_back
        log.warning(event, **fields)
