"""The process-wide hook: `install` taps every LangChain run, chains untouched."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from langchain_core.tracers.context import register_configure_hook

from runtap_collector.capture.capture import Capture
from runtap_collector.capture.handler import RunTapHandler
from runtap_collector.send.records import View
from runtap_collector.settings import CollectorSettings, SettingsOverrides
from runtap_collector.tap import FLUSH_SECONDS

if TYPE_CHECKING:
    from runtap_collector.send.emitter import Emitter

_lock = threading.RLock()
_hook: _Hook | None = None


class _Hook:
    """What LangChain asks for a handler when it configures callbacks. It cannot be unregistered, only switched off."""

    def __init__(self, handler: RunTapHandler) -> None:
        self.handler = handler
        self.users = 0
        # By a default, which every thread sees; what `set` puts there is seen in one context only.
        variable: ContextVar[Any] = ContextVar("runtap_handler", default=handler)
        register_configure_hook(variable, inheritable=True)


class Installation:
    """One use of the hook. Ends with `uninstall`, or at the end of a `with` block."""

    def __init__(self, hook: _Hook, emitter: Emitter) -> None:
        self._hook = hook
        self._emitter = emitter
        self._is_installed = True

    def uninstall(self) -> None:
        """Lets runs that begin from now on pass, unless another use goes on; runs that are open still end."""
        with _lock:
            if not self._is_installed:
                return
            self._is_installed = False
            self._hook.users -= 1
            self._hook.handler._capture.is_on = self._hook.users > 0
        self._emitter.flush(FLUSH_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.uninstall()


def install(*, service: str | None = None, **overrides: Unpack[SettingsOverrides]) -> Installation:
    """Taps every LangChain run of the process that begins from now on, in every thread. Closed at exit.

    As a context manager it taps the runs that begin in the block. With handlers attached by hand, nothing counts twice.

    Args:
        service: name of the service, `RUNTAP_SERVICE` if not given.
        **overrides: other settings that win over the environment, named as in `CollectorSettings`.

    Raises:
        SettingsError: a value cannot work.
        ConnectionConflictError: this process already emits with other connection settings.
    """
    global _hook
    # Not loaded with this module: see `RunTap`.
    from runtap_collector.process import attach_for_life

    settings = CollectorSettings.load(service=service, **overrides)
    with _lock:
        emitter = attach_for_life(settings)
        capture = Capture(emitter, View.of(settings))
        if _hook is None:
            _hook = _Hook(RunTapHandler(_capture=capture))
        elif _hook.users == 0:
            _hook.handler._capture = capture
        _hook.users += 1
        return Installation(_hook, emitter)
