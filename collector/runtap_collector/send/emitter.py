"""What all taps and handlers of a process share: `Emitter`. What exits, forks and signals do to it: `process`.

Emitter.offer -> Buffer.offer -> (first event after a pause) Sender.wake
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, cast

from runtap_collector.capture.open_runs import OpenRuns
from runtap_collector.errors import ConnectionConflictError
from runtap_collector.logs import log
from runtap_collector.send.buffer import Buffer
from runtap_collector.send.loop_thread import TASK_RETRY_SECONDS
from runtap_collector.send.outbox import Outbox
from runtap_collector.send.records import View
from runtap_collector.send.sender import Sender
from runtap_collector.settings import CollectorSettings
from runtap_collector.spool.spool import Spool
from runtap_collector.stats import Delivery, EmitterHealth, Stats
from runtap_schemas import ConnectionSettings, Event

_inherited: list[object] = []


class Emitter:
    """Buffer, open runs and sender. Made anew in place after a fork, and when it is used again after its close."""

    def __init__(self, settings: CollectorSettings, before_start: Callable[[], None] = lambda: None) -> None:
        """`before_start` is called before a sender is started, in whichever thread brings an event."""
        self.settings = settings
        self._before_start = before_start
        self._views = 0
        self._begin_anew(settings)

    def _begin_anew(self, settings: CollectorSettings) -> None:
        self.settings = settings
        # Reentrant for the same reason as the buffer's.
        self._lock = threading.RLock()
        self._sender: Sender | None = None
        self._sender_deaths = 0
        self.buffer = Buffer(settings.buffer_bytes)
        self.open_runs = OpenRuns()
        self.spool = Spool(settings.spool_directory, settings, settings.spool_bytes)
        self.outbox = Outbox(self.buffer, View.of(settings))

    def offer(self, event: Event) -> None:
        """Hands an event to the sender, or counts why not. Never waits."""
        if self.buffer.offer(event):
            self.wake()

    def wake(self) -> None:
        """Tells the sender that there is something, and starts it if there is none."""
        sender = self._sender
        if sender is None:
            with self._lock:
                sender = self._sender or self._start_sender()
        if sender is not None:
            sender.wake()

    def _make_sender(self) -> Sender:
        return Sender(self.buffer, self.outbox, self.spool, self.settings, self.evict_runs, self._replace_sender)

    def _start_sender(self) -> Sender | None:
        self._before_start()
        sender = self._make_sender()
        try:
            sender.thread.start()
        except RuntimeError as error:
            # An interpreter that is leaving starts no threads: what is in the buffer is spooled at close.
            log.warning("sender_not_started", reason=str(error))
            return None
        self._sender = sender
        return sender

    def _replace_sender(self) -> None:
        """Makes the sender anew that a fault of ours ended; buffer, lanes and spool are as it left them."""
        time.sleep(TASK_RETRY_SECONDS)
        with self._lock:
            self._sender_deaths += 1
            self._sender = None
            self._start_sender()

    def health(self) -> EmitterHealth:
        """Whether events get to Kafka."""
        sender = self._sender
        away_seconds = 0.0 if sender is None else sender.down_seconds
        problems = [
            word
            for word, is_so in (
                ("kafka_away", away_seconds > 0),
                ("spool_not_written", self.spool.has_failed_lately),
                ("sender_down", sender is None and not self.buffer.is_empty),
                ("closed", self.buffer.is_closed),
            )
            if is_so
        ]
        return EmitterHealth(not problems, problems, away_seconds, self._sender_deaths, self.spool.failures)

    def evict_runs(self) -> None:
        """Forgets runs beyond the table's bounds, and counts the ends that will not be seen."""
        for run in self.open_runs.evict():
            # Its children may hold it for longer.
            inputs, run.inputs = run.inputs, None
            self.buffer.release(len(inputs or b""))
            self.buffer.count_lost("run.ended", "evicted")

    def flush(self, timeout_seconds: float) -> Delivery:
        """Waits until everything captured so far is in Kafka, or given up, or time is up."""
        if self._sender is not None:
            self._sender.flush(timeout_seconds)
        return self.outbox.delivery()

    def secure(self, timeout_seconds: float) -> None:
        """Sends everything captured so far, or puts it into the spool where Kafka does not answer."""
        if self._sender is not None:
            self._sender.secure(timeout_seconds)

    @property
    def is_over(self) -> bool:
        """Whether it is closed, and its sender gone."""
        return self.buffer.is_closed and (self._sender is None or self._sender.thread.is_over)

    @property
    def is_busy(self) -> bool:
        """Whether this thread holds a lock that the sender may need. For signal handlers, which
        interrupt it anywhere.
        """
        return any(cast("Any", lock)._is_owned() for lock in (self._lock, self.buffer.lock))

    def stats(self) -> Stats:
        """The emitter's side of the ledger."""
        return self.outbox.stats(len(self.open_runs))

    def attach(self, settings: CollectorSettings) -> None:
        """Adds a view.

        Raises:
            ConnectionConflictError: the emitter is at work with another connection.
        """
        with self._lock:
            if self._views == 0 and self.buffer.is_closed:
                self._begin_anew(settings)
            elif differences := differences_of(self.settings, settings):
                raise ConnectionConflictError(differences)
            self._views += 1

    def detach(self, timeout_seconds: float) -> Delivery:
        """Takes a view away: the last one closes the emitter, others wait until their events are sent."""
        with self._lock:
            self._views = max(0, self._views - 1)
            is_last = self._views == 0
        return self.close(timeout_seconds) if is_last else self.flush(timeout_seconds)

    def close(self, timeout_seconds: float) -> Delivery:
        """Sends what there is, reports for the last time, and takes no more events."""
        self.buffer.close()
        if self._sender is not None:
            self._sender.close(timeout_seconds)
        elif self.buffer.captured:
            # None could be started: an interpreter that is leaving starts no threads.
            self._make_sender().put_rest_away()
        return self.outbox.delivery()

    def go_on_as_another(self) -> None:
        """After a close: begins anew with an id of its own, for the taps that there are."""
        with self._lock:
            if self._views and self.buffer.is_closed:
                self._begin_anew(self.settings)

    def leave_parent_process(self) -> None:
        """In a forked child: begins anew, with an id of its own and without what the parent still holds."""
        self.spool.leave()
        # Kept for ever: to end the parent's loop and sockets here would reach into the parent's poll set.
        _inherited.append((self._sender, self.buffer, self.outbox, self.open_runs))
        was_closed = self.buffer.is_closed
        self._begin_anew(self.settings)
        if was_closed:
            self.buffer.close()


def differences_of(ours: ConnectionSettings, theirs: ConnectionSettings) -> list[str]:
    """Names of the settings that one emitter cannot have both."""
    names = [*ConnectionSettings.model_fields, "buffer_bytes", "spool_dir", "spool_bytes"]
    return [name for name in names if getattr(ours, name) != getattr(theirs, name)]
