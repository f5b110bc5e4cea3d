"""From what callbacks kept to finished JSON: `end_of`, `start_of`, `sealed`. Called by the ring, for many ends at once.

A start whose run has ended by the time it would be sent is never encoded at all.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Raw

from runtap_collector.capture.translate import request_of, run_name
from runtap_collector.send.parts import encode_end
from runtap_collector.send.records import (
    EVENT_BYTES,
    RECORD_BYTES,
    REPORT,
    START_BYTES,
    Note,
    OpenRun,
    Outcome,
    Record,
    Route,
    Session,
)
from runtap_schemas import (
    EmitterReported,
    RunNoted,
    RunStarted,
    RunStreamed,
    SessionEnded,
    SessionStarted,
    encode_event,
)

MAX_EVENT_BYTES = 256 * 1024
_OK = Outcome("ok")


def start_of(run: OpenRun) -> Record:
    """The record of a run's start."""
    provider, request_model, _ = request_of(run) if run.run_type == "llm" else (None, None, None)
    event = RunStarted(at_ns=run.started_at_ns, provider=provider, request_model=request_model, **_identity_of(run))
    body = encode_event(event)
    return Record("run.started", run.route, START_BYTES, body, None, run.started_at_ns, run.started_monotonic_ns, run)


def _identity_of(run: OpenRun) -> dict[str, Any]:
    """What every event of a run says of it. `parts` writes the same for ends, by pieces."""
    return {
        "run_id": run.run_id,
        "trace_id": run.route.key,
        "parent_run_id": run.parent_run_id,
        "is_root": run.parent_run_id is None,
        "session_id": run.context.session_id,
        "user_id": run.context.user_id,
        "service": run.view.service,
        "environment": run.view.environment,
        "run_type": run.run_type,
        "name": run_name(run),
    }


def end_of(run: OpenRun) -> Record:
    """The record of a run's end. Lets go of what the run kept for it."""
    body = encode_end(run, run.outcome or _OK)
    is_cut = len(body) > MAX_EVENT_BYTES and (run.inputs is not None or run.outputs is not None)
    if is_cut:
        run.lost_bytes += len(run.inputs or b"") + len(run.outputs or b"")
        run.inputs = run.outputs = None
        body = encode_end(run, run.outcome or _OK)
    # The run itself may be needed for long, by its start.
    run.inputs = run.outputs = run.serialized = run.tags = run.metadata = run.invocation = None
    return Record(
        "run.ended",
        run.route,
        len(body) + RECORD_BYTES,
        body,
        None,
        run.ended_at_ns,
        run.ended_monotonic_ns,
        None,
        is_cut,
    )


def sealed(record: Record) -> Record:
    """The record with its event encoded, which the ring has stamped."""
    event = record.event
    if event is not None:
        event.at_ns = record.at_ns
        record.body = encode_event(event)
        record.size_bytes, record.event = len(record.body) + RECORD_BYTES, None
    return record


def note_of(run: OpenRun, note: Note) -> Record:
    """The record of something that happened within a run."""
    event = RunNoted(
        at_ns=0,
        kind=note.kind,
        note=note.note,
        attempt=note.attempt,
        data=UNSET if note.data is None else Raw(note.data),
        content_bytes=note.lost_bytes or None,
        **_identity_of(run),
    )
    return Record("run.noted", run.route, EVENT_BYTES + len(note.data or b""), event=event)


def streamed_of(run: OpenRun, index: int, text: str) -> Record:
    """The record of text that a model has streamed."""
    event = RunStreamed(
        at_ns=0,
        index=index,
        text=text,
        **_identity_of(run),
    )
    return Record("run.streamed", run.route, EVENT_BYTES + len(text), event=event)


def session_of(session: Session, route: Route, *, is_start: bool) -> Record:
    """The record of a session's start or end."""
    event = (SessionStarted if is_start else SessionEnded)(
        at_ns=0,
        session_id=session.session_id,
        user_id=session.user_id,
        service=session.view.service,
        environment=session.view.environment,
        tags=session.tags,
        metadata=session.metadata,
    )
    return Record("session.started" if is_start else "session.ended", route, EVENT_BYTES, event=event)


def report_of(report: EmitterReported, emitter: str) -> Record:
    """The record of an emitter's report. The ring holds nothing for it."""
    return Record(REPORT, Route(emitter, key_bytes=emitter.encode()), 0, encode_event(report), at_ns=report.at_ns)
