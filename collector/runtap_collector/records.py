"""
What goes from a callback to the sender: an end as finished JSON, a start as the run itself.

An end is encoded in the callback, which costs less than carrying its parts, and holds little memory while it waits. A
start whose run has ended by the time it would be sent is never encoded at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec import UNSET, Raw, Struct, field, structs

from runtap_collector.partitions import partition_of
from runtap_schemas import (
    RunEnded,
    RunError,
    RunNoted,
    RunStarted,
    RunStreamed,
    SessionEnded,
    SessionStarted,
    Usage,
    encode_event,
)
from runtap_schemas.events import MAX_DURATION_NS, Status, UsageSource

if TYPE_CHECKING:
    from runtap_collector.settings import CollectorSettings

MetadataValues = dict[str, str | int | float | bool]

# Memory that a queued start holds, with its run; and that a record holds beside its JSON.
START_BYTES = 700
RECORD_BYTES = 200
# Encoded with no time: the ring stamps it, the sender puts it in.
_NO_TIME = b'"at_ns":0'


@dataclass(frozen=True, slots=True)
class View:
    """
    Whose runs a handler reports.
    """

    service: str
    environment: str
    metadata: MetadataValues
    captures_content: bool
    streams_tokens: bool = False

    @classmethod
    def of(cls, settings: CollectorSettings) -> View:
        """
        The view that settings describe.
        """
        return cls(
            settings.service,
            settings.environment,
            dict(settings.metadata),
            settings.capture_content,
            settings.capture_content and settings.stream_tokens,
        )


# The structs below are not tracked by the collector of garbage, which otherwise walks all that wait. What could close
# a cycle (exceptions, foreign metadata) is let go when a run leaves the table of open runs.


class Route(Struct, gc=False):
    """
    Key of the events of one trace (the id of its root) or session, and the partition that the first of them went to.

    Kept for as long as the trace lives: its events stay together when partitions are added.
    """

    # A UUID, or the text of a session's id.
    key: Any
    partition: int | None = None
    # Set with the partition.
    key_bytes: bytes = b""

    def choose_partition(self, partition_count: int) -> int:
        """
        Sets the partition to the one that every Kafka client would choose.
        """
        self.partition = partition_of(self.key_text(), partition_count)
        return self.partition

    def key_text(self) -> bytes:
        """
        The Kafka records' key.
        """
        if not self.key_bytes:
            self.key_bytes = str(self.key).encode()
        return self.key_bytes


class Stream(Struct, gc=False):
    """
    Text that a model has streamed and that is in no event yet. `index` is the place of its first token.
    """

    index: int = 0
    length: int = 0
    parts: list[str] = field(default_factory=list)
    sent_monotonic_ns: int = 0


class OpenRun(Struct, gc=False):
    """
    A run that has started, and what is known of it by its start.

    Attributes:
        owner: the capture whose handler saw the start.
        given_metadata: as LangChain gave it: children that were given the same share what was kept of it.
        own_keys: how many of its keys are not LangChain's own.
        streamed_usage: of the last chunk of a stream that had some.
        has_running_usage: whether chunks repeat the usage so far, which LangChain adds up; `None`: one had any.
        child_errors: exceptions with which children ended: one that passes through here was counted there.
        ended: set by the ring when it takes the end: only then is the start not needed any more.
        input_bytes: original size of the inputs where they were not kept.
    """

    # `Any` for UUIDs: msgspec writes them as text by itself, in a tenth of the time of `str`.
    run_id: Any
    parent_run_id: Any
    run_type: str
    name: str
    view: View
    route: Route
    owner: object = None
    session: Session | None = None
    session_id: str | None = None
    user_id: str | None = None
    given_metadata: Mapping[str, Any] = {}
    own_keys: int = 0
    metadata: MetadataValues = {}
    tags: list[str] = []
    provider: str | None = None
    request_model: str | None = None
    request_tier: str | None = None
    started_at_ns: int = 0
    started_monotonic_ns: int = 0
    first_token_ns: int = 0
    streamed_usage: Mapping[str, Any] | None = None
    has_running_usage: bool | None = None
    stream: Stream | None = None
    child_errors: list[tuple[BaseException, RunError]] | None = None
    interrupted: bool = False
    ended: bool = False
    inputs: bytes | None = None
    input_bytes: int = 0
    reserved_bytes: int = 0


class Outcome(Struct, gc=False):
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


class Session(Struct, gc=False):
    """
    A session that the service names. `metadata` holds the view's as well.
    """

    session_id: str
    view: View
    user_id: str | None = None
    tags: list[str] = field(default_factory=list)
    metadata: MetadataValues = field(default_factory=dict)


class Record(Struct, gc=False):
    """
    One event on its way. The ring stamps `at_ns` and `monotonic_ns` when it is offered.

    Attributes:
        body: its JSON without a time; `None`: a start, encoded when it is sent.
        run: the run of a start, or the one that an end ends until the ring has taken it.
        size_bytes: memory that it is counted with.
        has_content: whether captured content is part of it.
    """

    kind: str
    route: Route
    size_bytes: int
    body: bytes | None = None
    run: OpenRun | None = None
    has_content: bool = False
    at_ns: int = 0
    monotonic_ns: int = 0

    def encode(self) -> bytes:
        """
        Its JSON, without a number.
        """
        body = self.body
        if body is None:
            assert self.run is not None
            body = _encode_start(self.run)
        # Always the first occurrence: only the type stands before it.
        return body.replace(_NO_TIME, b'"at_ns":%d' % self.at_ns, 1)


def start_of(run: OpenRun) -> Record:
    """
    The record of a run's start, which the ring has stamped.
    """
    return Record("run.started", run.route, START_BYTES, None, run, False, run.started_at_ns, run.started_monotonic_ns)


def _encode_start(run: OpenRun) -> bytes:
    return encode_event(
        RunStarted(
            at_ns=0,
            run_id=run.run_id,
            trace_id=run.route.key,
            parent_run_id=run.parent_run_id,
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
    )


def _since(start_ns: int, instant_ns: int) -> int:
    return min(max(0, instant_ns - start_ns), MAX_DURATION_NS)


def end_of(
    run: OpenRun, outcome: Outcome, ended_monotonic_ns: int, outputs: bytes | None = None, lost_bytes: int = 0
) -> Record:
    """
    The record of a run's end.

    Args:
        run: the run; its inputs are part of the record if it has any.
        outcome: how it ended.
        ended_monotonic_ns: when.
        outputs: captured content as JSON.
        lost_bytes: size of outputs that were not kept.
    """
    duration_ns = ended_monotonic_ns - run.started_monotonic_ns
    event = RunEnded(
        at_ns=0,
        run_id=run.run_id,
        trace_id=run.route.key,
        parent_run_id=run.parent_run_id,
        is_root=run.parent_run_id is None,
        session_id=run.session_id,
        user_id=run.user_id,
        service=run.view.service,
        environment=run.view.environment,
        run_type=run.run_type,
        name=run.name,
        status=outcome.status,
        started_at_ns=run.started_at_ns,
        duration_ns=duration_ns if 0 <= duration_ns <= MAX_DURATION_NS else _since(0, duration_ns),
        tags=run.tags,
        metadata=run.metadata,
    )
    if run.run_type == "llm":
        _add_model_facts(event, run, outcome)
    if outcome.error is not None:
        event.error = outcome.error
    inputs = run.inputs
    if inputs is not None:
        event.inputs = Raw(inputs)
    if outputs is not None:
        event.outputs = Raw(outputs)
    lost_bytes += run.input_bytes
    if lost_bytes:
        event.content_bytes = lost_bytes + len(inputs or b"") + len(outputs or b"")
    body = encode_event(event)
    has_content = inputs is not None or outputs is not None
    return Record("run.ended", run.route, len(body) + RECORD_BYTES, body, run, has_content)


def _add_model_facts(event: RunEnded, run: OpenRun, outcome: Outcome) -> None:
    if run.first_token_ns:
        event.time_to_first_token_ns = _since(run.started_monotonic_ns, run.first_token_ns)
    event.provider = run.provider or outcome.provider
    event.request_model = run.request_model
    event.model = outcome.model or run.request_model
    event.service_tier = outcome.service_tier or run.request_tier
    event.finish_reason = outcome.finish_reason
    event.usage = outcome.usage
    event.usage_source = outcome.usage_source
    event.reported_cost_usd = outcome.reported_cost_usd


class Note(Struct, gc=False):
    """
    What happened within a run. `data` is its content as JSON, `lost_bytes` its size where it was not kept.
    """

    kind: str
    note: str | None = None
    attempt: int | None = None
    data: bytes | None = None
    lost_bytes: int = 0


def note_of(run: OpenRun, note: Note) -> Record:
    """
    The record of something that happened within a run.
    """
    body = encode_event(
        RunNoted(
            at_ns=0,
            run_id=run.run_id,
            trace_id=run.route.key,
            parent_run_id=run.parent_run_id,
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
    )
    return Record("run.noted", run.route, len(body) + RECORD_BYTES, body, None, note.data is not None)


def streamed_of(run: OpenRun, index: int, text: str) -> Record:
    """
    The record of text that a model has streamed.
    """
    body = encode_event(
        RunStreamed(
            at_ns=0,
            run_id=run.run_id,
            trace_id=run.route.key,
            parent_run_id=run.parent_run_id,
            is_root=run.parent_run_id is None,
            session_id=run.session_id,
            user_id=run.user_id,
            service=run.view.service,
            environment=run.view.environment,
            run_type=run.run_type,
            name=run.name,
            index=index,
            text=text,
        )
    )
    return Record("run.streamed", run.route, len(body) + RECORD_BYTES, body, None, True)


def without_data(note: Note) -> Note:
    """
    The same note without its content.
    """
    return structs.replace(note, data=None, lost_bytes=note.lost_bytes + len(note.data or b""))


def session_of(session: Session, route: Route, *, is_start: bool) -> Record:
    """
    The record of a session's start or end.
    """
    event = SessionStarted if is_start else SessionEnded
    body = encode_event(
        event(
            at_ns=0,
            session_id=session.session_id,
            user_id=session.user_id,
            service=session.view.service,
            environment=session.view.environment,
            tags=session.tags,
            metadata=session.metadata,
        )
    )
    kind = "session.started" if is_start else "session.ended"
    return Record(kind, route, len(body) + RECORD_BYTES, body)
