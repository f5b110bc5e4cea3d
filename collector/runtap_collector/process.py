"""The process's one emitter, and what exits, forks, signals and restored snapshots do to it: `attach`."""

from __future__ import annotations

import atexit
import os
import threading
import time
from contextlib import suppress
from importlib import import_module
from multiprocessing import parent_process
from multiprocessing import util as multiprocessing_util
from typing import Any, cast

from runtap_collector import signals
from runtap_collector.errors import ConnectionConflictError
from runtap_collector.send.emitter import Emitter, differences_of
from runtap_collector.settings import CollectorSettings

EXIT_SECONDS = 2.0

_lock = threading.RLock()
_emitter: Emitter | None = None
# What a signal that the app handles itself has taken of the exit that follows it.
_signal_seconds = 0.0
_is_attached_for_life = False


def attach(settings: CollectorSettings) -> Emitter:
    """A view on the process's emitter, which is made if there is none. Every view is to be detached.

    Raises:
        ConnectionConflictError: the emitter is at work with another connection.
        SettingsError: the connection's files cannot be read.
    """
    global _emitter
    # Now, where it is an error that somebody sees, rather than in the sender's thread.
    settings.client_options()
    with _lock:
        if _emitter is None:
            # In a forked child the server may have reset what its parent installed.
            _emitter = Emitter(settings, _chain_again)
            atexit.register(_close_at_exit)
            _close_at_exit_of_child()
            multiprocessing_util.register_after_fork(_emitter, _close_at_exit_of_child)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=_after_fork)
            _end_with_snapshots()
        _emitter.attach(settings)
        _chain_on_signals(settings)
        return _emitter


def attach_for_life(settings: CollectorSettings) -> Emitter:
    """The process's emitter, closed at exit: for handlers that nobody closes."""
    global _is_attached_for_life
    with _lock:
        if _is_attached_for_life and _emitter is not None:
            if differences := differences_of(_emitter.settings, settings):
                raise ConnectionConflictError(differences)
            _chain_on_signals(settings)
            return _emitter
        emitter = attach(settings)
        _is_attached_for_life = True
        return emitter


def attach_as_it_is() -> Emitter:
    """The process's emitter whatever its settings, closed at exit; where there is none, one of the environment's
    settings.
    """
    with _lock:
        return attach_for_life(CollectorSettings.load() if _emitter is None else _emitter.settings)


def _chain_on_signals(settings: CollectorSettings) -> None:
    if settings.signals == "on":
        signals.chain(signals.Actions(_close_at_exit, _secure, _is_busy))


def _chain_again() -> None:
    if _emitter is not None:
        _chain_on_signals(_emitter.settings)


def _secure() -> None:
    global _signal_seconds
    if _emitter is not None and not _emitter.buffer.is_closed:
        began = time.monotonic()
        with suppress(Exception):
            _emitter.secure(EXIT_SECONDS)
        _signal_seconds = time.monotonic() - began


def _is_busy() -> bool:
    return cast("Any", _lock)._is_owned() or (_emitter is not None and _emitter.is_busy)


def _close_at_exit() -> None:
    if _emitter is not None and not _emitter.is_over:
        # Nothing that goes wrong here may change how the app exits.
        with suppress(Exception):
            _emitter.close(EXIT_SECONDS - _signal_seconds)


def _close_at_exit_of_child(_: object = None) -> None:
    """A forked child of `multiprocessing` leaves without running what is registered with `atexit`."""
    if parent_process() is not None:
        multiprocessing_util.Finalize(None, _close_at_exit, exitpriority=0)


def _end_with_snapshots() -> None:
    """Where the platform restores snapshots of running processes, and says so, every copy is an emitter of its own."""
    try:
        # AWS Lambda's runtime brings it.
        hooks = import_module("snapshot_restore_py")
    except ImportError:
        return
    hooks.register_before_snapshot(_close_at_exit)
    hooks.register_after_restore(_after_restore)


def _after_restore() -> None:
    if _emitter is not None:
        _emitter.go_on_as_another()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    if _emitter is not None:
        _emitter.leave_parent_process()
