"""A tap whose owner sees the runs that end: `open_watched_tap`, entry point `tap` of the group `runtap.watch`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Unpack

from runtap_collector.capture.capture import Capture
from runtap_collector.capture.handler import RunTapHandler
from runtap_collector.errors import ConnectionConflictError
from runtap_collector.process import attach, attach_as_it_is
from runtap_collector.send.emitter import Emitter
from runtap_collector.send.encoding import end_of
from runtap_collector.send.records import OpenRun, View
from runtap_collector.settings import CollectorSettings, SettingsOverrides
from runtap_collector.stats import Delivery
from runtap_collector.tap import CLOSE_SECONDS
from runtap_schemas import RunEnded, decode_event


class _WatchedCapture(Capture):
    def __init__(self, emitter: Emitter, view: View, watch: Callable[[RunEnded], None]) -> None:
        super().__init__(emitter, view)
        self._watch = watch

    def _offer_end(self, run: OpenRun, outputs: object) -> None:
        # Before it is handed over, which takes away what its event is made of.
        run.duration_ns, run.ended_at_ns = time.monotonic_ns() - run.started_monotonic_ns, time.time_ns()
        event = decode_event(end_of(run)[0])
        super()._offer_end(run, outputs)
        if isinstance(event, RunEnded):
            self._watch(event)


class WatchedTap:
    """A view on the process's emitter: its runs go where all others go, and their ends to `watch` as well."""

    def __init__(self, settings: CollectorSettings, watch: Callable[[RunEnded], None]) -> None:
        try:
            self._emitter = attach(settings)
            self._is_ours = True
        except ConnectionConflictError:
            # The app that is watched has said where its events go.
            self._emitter, self._is_ours = attach_as_it_is(), False
        self.handler = RunTapHandler(_capture=_WatchedCapture(self._emitter, View.of(settings), watch))

    def close(self) -> Delivery:
        """Waits a moment until all of it is in Kafka; spools what is not."""
        return (self._emitter.detach if self._is_ours else self._emitter.flush)(CLOSE_SECONDS)


def open_watched_tap(watch: Callable[[RunEnded], None], **overrides: Unpack[SettingsOverrides]) -> WatchedTap:
    """A tap with settings from the environment, over which those that are given win.

    Args:
        watch: called with the end of each run, in whichever thread it ended, before the run's caller goes on.
        **overrides: named as in `CollectorSettings`.

    Raises:
        SettingsError: a value cannot work.
    """
    return WatchedTap(CollectorSettings.load(**overrides), watch)
