"""SIGTERM and SIGHUP, which by default end Python on the spot: `chain` makes what is in memory safe before they do.

found there                 at the signal
the default                 the emitter is closed, then the process dies of the signal
uvicorn's handler           it is called; uvicorn serves on, and raises the signal as its last act: only there the
                            emitter is closed
another function            what is in memory is sent or spooled, then the function is called
ignored, or not Python's    left alone
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_BUSY_SECONDS = 0.001


@dataclass(frozen=True)
class Actions:
    """What there is to do at a signal.

    Attributes:
        close: closes the emitter.
        secure: sends or spools what is in memory; the emitter goes on.
        is_busy: whether the main thread is in the middle of something of ours, so that the sender may wait for it.
    """

    close: Callable[[], None]
    secure: Callable[[], None]
    is_busy: Callable[[], bool]


def chain(actions: Actions) -> None:
    """Puts our handlers before those that are there. Does nothing outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return
    for signum in SIGNALS:
        before = signal.getsignal(signum)
        if before == signal.SIG_DFL or (callable(before) and not isinstance(before, _Chained)):
            # A subinterpreter's main thread may not set signal handlers.
            with suppress(ValueError):
                signal.signal(signum, _Chained(before, actions))


class _Chained:
    """Our handler, and the one before it."""

    def __init__(self, before: Any, actions: Actions) -> None:
        self._before = before
        self._actions = actions

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self._before == signal.SIG_DFL:
            self._die(signum)
            return
        captured = getattr(getattr(self._before, "__self__", None), "_captured_signals", None)
        if captured is None and not self._actions.is_busy():
            self._actions.secure()
        self._before(signum, frame)
        if captured and captured[-1] == signum:
            captured[-1] = _CapturedSignal(signum, self._actions)

    def _die(self, signum: int) -> None:
        if self._actions.is_busy():
            # The interrupted main thread holds a lock that closing needs: try again once it has let go.
            _thread.start_new_thread(_repeat, (signum,))
            return
        # From here on a second signal ends the process at once.
        signal.signal(signum, signal.SIG_DFL)
        try:
            _finish(self._actions)
        finally:
            signal.raise_signal(signum)
            # The first process of a container survives its default handler: be ready for the next signal.
            signal.signal(signum, self)


class _CapturedSignal:
    """Stands among the signals that a `uvicorn.Server` has captured. At its end it puts the default handler back and
    calls `signal.raise_signal` with each: the process dies in that call, whose argument is all that it asks us for.
    """

    def __init__(self, signum: int, actions: Actions) -> None:
        self._signum = signum
        self._actions = actions

    def __index__(self) -> int:
        # Whatever fails here, Ctrl-C included, the signal must still be raised.
        with suppress(BaseException):
            _finish(self._actions)
        return self._signum


def _finish(actions: Actions) -> None:
    # The kernel does not end the first process of a container by a signal's default action.
    if os.getpid() == 1:
        actions.secure()
    else:
        actions.close()


def _repeat(signum: int) -> None:
    time.sleep(_BUSY_SECONDS)
    # To the main thread, whose sleep it is to interrupt.
    signal.pthread_kill(threading.main_thread().ident or 0, signum)
