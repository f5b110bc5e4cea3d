"""Ending in order when asked to: SIGTERM and SIGHUP unwind the program as Ctrl-C does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Windows has no SIGHUP.
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def unwound_by_signals() -> Iterator[None]:
    """Each of these signals raises SystemExit in the main thread, so that every `with` block ends its part."""

    def exit_in_order(number: int, frame: FrameType | None) -> None:
        # A second signal would interrupt the cleaning up and leave a Kafka behind.
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, exit_in_order) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
