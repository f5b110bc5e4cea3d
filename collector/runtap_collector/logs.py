"""The collector's log lines: `event='…' field='…'` of the standard library's logger `runtap_collector`.

The app owns the configuration of logging: nothing here changes it. A process that configured none sees warnings on
stderr, as with any library.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from typing import Any

from runtap_schemas.masking import mask_log_event

_REPEAT_SECONDS = 60.0


class Log:
    """Writes an event and its fields as one line, with passwords masked."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def warning(self, event: str, **fields: Any) -> None:
        """What people should know."""
        self._write(logging.WARNING, {"event": event, **fields})

    def error(self, event: str, **fields: Any) -> None:
        """What people should mend."""
        self._write(logging.ERROR, {"event": event, **fields})

    def _write(self, level: int, fields: dict[str, Any]) -> None:
        if not self._logger.isEnabledFor(level):
            return
        if fields.pop("exc_info", False):
            fields["exception"] = _where()
        masked = mask_log_event(None, "", fields)
        self._logger.log(level, " ".join(f"{name}={value!r}" for name, value in masked.items()), stacklevel=3)


def _where() -> str:
    """Where the handled exception was raised, without messages, which may quote what people wrote."""
    kind, _, where = sys.exc_info()
    return f"{''.join(traceback.format_tb(where))}{getattr(kind, '__name__', kind)}"


log = Log(logging.getLogger("runtap_collector"))


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
