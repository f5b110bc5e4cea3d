"""A collector without Kafka: what the handler captures, closed into frames and passed once through the wire
contract.
"""

from __future__ import annotations

from typing import Any, TypeVar

from runtap_collector import CollectorSettings, RunTapHandler
from runtap_collector.capture.capture import Capture
from runtap_collector.send.emitter import Emitter
from runtap_collector.send.records import View
from runtap_schemas import Event, RunEnded
from topic_log import events_of

E = TypeVar("E", bound=Event)


class SilentEmitter(Emitter):
    """An emitter that never starts its sender."""

    def wake(self) -> None:
        return


class Captured:
    """A handler, and the events that it would have sent."""

    def __init__(self, **settings: Any) -> None:
        self.settings = CollectorSettings.load(**{"service": "tested", "environment": "tests", **settings})
        self.emitter = SilentEmitter(self.settings)
        self.handler = self.another_handler()
        self._events: list[Event] = []

    def another_handler(self) -> RunTapHandler:
        """Another handler on the same emitter."""
        return RunTapHandler(_capture=Capture(self.emitter, View.of(self.settings)))

    def begin_anew(self) -> None:
        """Forgets everything: the same handler on an emitter that has seen nothing."""
        self.emitter._begin_anew(self.settings)
        self._events = []

    def call(self, callback: str, *arguments: object, **keywords: object) -> None:
        """Calls the handler as LangChain does, which ignores what it returns."""
        getattr(self.handler, callback)(*arguments, **keywords)

    def events(self) -> list[Event]:
        """Everything captured so far, in order, as a worker would read it."""
        outbox = self.emitter.outbox
        outbox.close_frames()
        while outbox.lane.frames:
            frame = outbox.lane.frames[0]
            self._events += [entry.event for entry in events_of(frame.value)]
            outbox.settle(outbox.lane, frame)
        return self._events

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind."""
        return [event for event in self.events() if isinstance(event, kind)]

    def ended(self) -> list[RunEnded]:
        """The ended runs, in the order of their ends."""
        return self.of(RunEnded)

    def ended_named(self, name: str) -> RunEnded:
        """The only ended run of that name."""
        (run,) = [run for run in self.ended() if run.name == name]
        return run
