"""
What waits for the sender: small objects that know how to become events.

A record is made in a callback and built in the sender's thread, so a start whose run has ended by then is never built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from msgspec import UNSET, Raw

from runtap_schemas import (
    Event,
    RunEnded,
    RunError,
    RunNoted,
    RunStarted,
    SessionEnded,
    SessionStarted,
    Usage,
)
from runtap_schemas.events import MAX_DURATION_NS, Status, UsageSource

if TYPE_CHECKING:
    from runtap_collector.settings import CollectorSettings

MetadataValues = dict[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class View:
    """
    Whose runs a handler reports.
    """

    service: str
    environment: str
    metadata: MetadataValues
    captures_content: bool

    @classmethod
    def of(cls, settings: CollectorSettings) -> View:
        """
        The view that settings describe.
        """
        return cls(settings.service, settings.environment, dict(settings.metadata), settings.capture_content)


class Route:
    """
    Key of the events of one trace or session, and the partition that the first of them went to.

    Kept for as long as the trace lives: its events stay together when partitions are added.
    """

    __slots__ = ("key", "partition")

    def __init__(self, key: str) -> None:
        self.key = key
        self.partition: int | None = None


class OpenRun:
    """
    A run that has started, and what is known of it by its start.
    """

    __slots__ = (
        "child_errors",
        "ended",
        "first_token_ns",
        "given_metadata",
        "input_bytes",
        "inputs",
        "interrupted",
        "metadata",
        "name",
        "owner",
        "parent_run_id",
        "provider",
        "request_model",
        "request_tier",
        "reserved_bytes",
        "route",
        "run_id",
        "run_type",
        "session",
        "session_id",
        "started_at_ns",
        "started_monotonic_ns",
        "tags",
        "user_id",
        "view",
    )

    def __init__(
        self,
        run_id: UUID,
        parent_run_id: UUID | None,
        run_type: str,
        name: str,
        view: View,
        route: Route,
        owner: object = None,
    ) -> None:
        self.run_id = run_id
        self.parent_run_id = parent_run_id
        self.run_type = run_type
        self.name = name
        self.view = view
        self.route = route
        # Who reported the start: of several handlers, the one whose notes count.
        self.owner = owner
        self.session: Session | None = None
        self.session_id: str | None = None
        self.user_id: str | None = None
        # As LangChain gave it: children that were given the same share what was kept of it.
        self.given_metadata: Mapping[str, Any] = {}
        self.provider: str | None = None
        self.request_model: str | None = None
        self.request_tier: str | None = None
        self.tags: list[str] = []
        self.metadata: MetadataValues = {}
        self.started_at_ns = 0
        self.started_monotonic_ns = 0
        self.first_token_ns: int | None = None
        # Exceptions with which children ended: one that passes through here was counted there.
        self.child_errors: list[tuple[BaseException, RunError]] | None = None
        self.interrupted = False
        # Set by the ring when it takes the end: only then is the start not needed any more.
        self.ended = False
        self.inputs: bytes | None = None
        # Original size of the inputs where they were not kept.
        self.input_bytes = 0
        self.reserved_bytes = 0


@dataclass(slots=True)
class Outcome:
    """
    How a run ended.
    """

    status: Status
    error: RunError | None = None
    provider: str | None = None
    model: str | None = None
    service_tier: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    usage_source: UsageSource = "none"
    reported_cost_usd: str | None = None


class Record:
    """
    One event on its way. The ring stamps `at_ns` and `monotonic_ns` when it is offered.
    """

    __slots__ = ("at_ns", "monotonic_ns", "route", "size_bytes")

    kind: ClassVar[str]
    # Memory that the facts of such a record hold, with its share of the run: an estimate.
    facts_bytes: ClassVar[int]

    def __init__(self, route: Route) -> None:
        self.at_ns = 0
        self.monotonic_ns = 0
        self.route = route
        self.size_bytes = self.facts_bytes

    @property
    def content_bytes(self) -> int:
        """
        Bytes of captured content that it holds.
        """
        return 0

    @property
    def reserved_bytes(self) -> int:
        """
        Bytes that the ring holds for it already.
        """
        return 0

    def drop_content(self) -> None:
        """
        Lets go of captured content, keeping its size.
        """

    def note_taken(self) -> None:
        """
        Called by the ring, under its lock, when it has taken the record.
        """

    @property
    def is_superseded(self) -> bool:
        """
        Whether another record, already taken by the ring, says all that this one says.
        """
        return False

    def build(self) -> Event:
        """
        The event, without a number.
        """
        raise NotImplementedError


class RunStart(Record):
    """
    A run began.
    """

    __slots__ = ("run",)

    kind = "run.started"
    facts_bytes = 900

    def __init__(self, run: OpenRun) -> None:
        super().__init__(run.route)
        self.run = run

    @property
    def is_superseded(self) -> bool:
        return self.run.ended

    def build(self) -> Event:
        run = self.run
        return RunStarted(
            at_ns=self.at_ns,
            run_id=str(run.run_id),
            trace_id=run.route.key,
            parent_run_id=None if run.parent_run_id is None else str(run.parent_run_id),
            is_root=run.parent_run_id is None,
            session_id=run.session_id,
            user_id=run.user_id,
            service=run.view.service,
            environment=run.view.environment,
            run_type=run.run_type,
            name=run.name,
            provider=run.provider,
            request_model=run.request_model,
        )


def _since(start_ns: int, instant_ns: int | None) -> int | None:
    return None if instant_ns is None else min(max(0, instant_ns - start_ns), MAX_DURATION_NS)


class RunEnd(Record):
    """
    A run ended. Holds the run's content, and the bytes that the ring had reserved for its inputs.
    """

    __slots__ = ("lost_bytes", "outcome", "outputs", "run")

    kind = "run.ended"
    facts_bytes = 1_300

    def __init__(self, run: OpenRun, outcome: Outcome, outputs: bytes | None, lost_bytes: int) -> None:
        super().__init__(run.route)
        self.run = run
        self.outcome = outcome
        self.outputs = outputs
        self.lost_bytes = lost_bytes + run.input_bytes
        self.size_bytes += self.content_bytes

    @property
    def content_bytes(self) -> int:
        return len(self.run.inputs or b"") + len(self.outputs or b"")

    @property
    def reserved_bytes(self) -> int:
        return self.run.reserved_bytes

    def note_taken(self) -> None:
        self.run.ended = True

    def drop_content(self) -> None:
        held = self.content_bytes
        self.lost_bytes += held
        self.size_bytes -= held
        self.run.inputs = None
        self.outputs = None

    def build(self) -> Event:
        run, outcome = self.run, self.outcome
        return RunEnded(
            at_ns=self.at_ns,
            run_id=str(run.run_id),
            trace_id=run.route.key,
            parent_run_id=None if run.parent_run_id is None else str(run.parent_run_id),
            is_root=run.parent_run_id is None,
            session_id=run.session_id,
            user_id=run.user_id,
            service=run.view.service,
            environment=run.view.environment,
            run_type=run.run_type,
            name=run.name,
            status=outcome.status,
            started_at_ns=run.started_at_ns,
            duration_ns=_since(run.started_monotonic_ns, self.monotonic_ns) or 0,
            time_to_first_token_ns=_since(run.started_monotonic_ns, run.first_token_ns),
            provider=run.provider or outcome.provider,
            request_model=run.request_model,
            model=outcome.model or run.request_model,
            service_tier=outcome.service_tier or run.request_tier,
            finish_reason=outcome.finish_reason,
            usage=outcome.usage,
            usage_source=outcome.usage_source,
            reported_cost_usd=outcome.reported_cost_usd,
            error=outcome.error,
            tags=run.tags,
            metadata=run.metadata,
            inputs=UNSET if run.inputs is None else Raw(run.inputs),
            outputs=UNSET if self.outputs is None else Raw(self.outputs),
            content_bytes=(self.lost_bytes + self.content_bytes) if self.lost_bytes else None,
        )


@dataclass(slots=True)
class Note:
    """
    What happened within a run. `data` is its content as JSON, `lost_bytes` its size where it was not kept.
    """

    kind: str
    note: str | None = None
    attempt: int | None = None
    data: bytes | None = None
    lost_bytes: int = 0


class RunNote(Record):
    """
    Something happened within a run.
    """

    __slots__ = ("note", "run")

    kind = "run.noted"
    facts_bytes = 500

    def __init__(self, run: OpenRun, note: Note) -> None:
        super().__init__(run.route)
        self.run = run
        self.note = note
        self.size_bytes += self.content_bytes

    @property
    def content_bytes(self) -> int:
        return len(self.note.data or b"")

    def drop_content(self) -> None:
        held = self.content_bytes
        self.note.lost_bytes += held
        self.size_bytes -= held
        self.note.data = None

    def build(self) -> Event:
        run, note = self.run, self.note
        return RunNoted(
            at_ns=self.at_ns,
            run_id=str(run.run_id),
            trace_id=run.route.key,
            parent_run_id=None if run.parent_run_id is None else str(run.parent_run_id),
            is_root=run.parent_run_id is None,
            session_id=run.session_id,
            user_id=run.user_id,
            service=run.view.service,
            environment=run.view.environment,
            run_type=run.run_type,
            name=run.name,
            kind=note.kind,
            note=note.note,
            attempt=note.attempt,
            data=UNSET if note.data is None else Raw(note.data),
            content_bytes=note.lost_bytes or None,
        )


@dataclass(slots=True)
class Session:
    """
    A session that the service names. `metadata` holds the view's as well.
    """

    session_id: str
    view: View
    user_id: str | None = None
    tags: list[str] = field(default_factory=list)
    metadata: MetadataValues = field(default_factory=dict)


class SessionStart(Record):
    """
    The service said that a session began.
    """

    __slots__ = ("session",)

    kind = "session.started"
    facts_bytes = 600
    event: ClassVar[type[SessionStarted] | type[SessionEnded]] = SessionStarted

    def __init__(self, session: Session, route: Route) -> None:
        super().__init__(route)
        self.session = session

    def build(self) -> Event:
        session = self.session
        return self.event(
            at_ns=self.at_ns,
            session_id=session.session_id,
            user_id=session.user_id,
            service=session.view.service,
            environment=session.view.environment,
            tags=session.tags,
            metadata=session.metadata,
        )


class SessionEnd(SessionStart):
    """
    The service said that a session ended.
    """

    __slots__ = ()

    kind = "session.ended"
    event = SessionEnded
