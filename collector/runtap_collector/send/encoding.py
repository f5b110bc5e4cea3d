"""From what callbacks kept to events and finished lines: `end_of`, `start_of`, and the rest. Called by the buffer.

A start whose run has ended by the time it would be sent is never encoded at all.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Raw

from runtap_collector.capture.translate import request_of, run_name
from runtap_collector.send.parts import encode_end
from runtap_collector.send.records import Note, OpenRun, Outcome, Session, View
from runtap_schemas import RunNoted, RunScored, RunStarted, RunStreamed, SessionEnded, SessionStarted, encode_event
from runtap_schemas.frame import MAX_FRAME_BYTES

# What a frame has room for, beside its header.
MAX_EVENT_BYTES = MAX_FRAME_BYTES - 256
_OK = Outcome("ok")


def start_of(run: OpenRun) -> bytes:
    """The line of a run's start."""
    provider, request_model = request_of(run)[:2] if run.run_type == "llm" else (None, None)
    event = RunStarted(at_ns=run.started_at_ns, provider=provider, request_model=request_model, **_identity_of(run))
    return encode_event(event)


def _identity_of(run: OpenRun) -> dict[str, Any]:
    """What every event of a run says of it. `parts` writes the same for ends, by pieces."""
    return {
        "run_id": run.run_id,
        "trace_id": run.trace.id,
        "parent_run_id": run.parent_run_id,
        "is_root": run.parent_run_id is None,
        "session_id": run.context.session_id,
        "user_id": run.context.user_id,
        "service": run.view.service,
        "environment": run.view.environment,
        "run_type": run.run_type,
        "name": run_name(run),
    }


def end_of(run: OpenRun) -> tuple[bytes, bool]:
    """The line of a run's end, and whether it went without its content, which left no room for the facts."""
    outcome = run.outcome or _OK
    line = encode_end(run, outcome)
    if len(line) <= MAX_EVENT_BYTES or (run.inputs is None and run.outputs is None):
        return line, False
    run.lost_bytes += len(run.inputs or b"") + len(run.outputs or b"")
    run.inputs = run.outputs = None
    return encode_end(run, outcome), True


def note_of(run: OpenRun, note: Note) -> RunNoted:
    """Something that happened within a run."""
    return RunNoted(
        at_ns=0,
        kind=note.kind,
        note=note.note,
        attempt=note.attempt,
        data=UNSET if note.data is None else Raw(note.data),
        content_bytes=note.lost_bytes or None,
        **_identity_of(run),
    )


def streamed_of(run: OpenRun, index: int, text: str) -> RunStreamed:
    """Text that a model has streamed."""
    return RunStreamed(at_ns=0, index=index, text=text, **_identity_of(run))


def score_of(
    view: View, run_id: str, key: str, score: float | None, value: str | None, source: str, comment: str | None
) -> RunScored:
    """What somebody thought of a run; the comment only where content is captured."""
    return RunScored(
        at_ns=0,
        run_id=run_id,
        key=key,
        score=score,
        value=value,
        source=source,
        comment=comment if view.captures_content else None,
        service=view.service,
        environment=view.environment,
    )


def session_of(session: Session, *, is_start: bool) -> SessionStarted | SessionEnded:
    """A session's start or end."""
    return (SessionStarted if is_start else SessionEnded)(
        at_ns=0,
        session_id=session.session_id,
        user_id=session.user_id,
        service=session.view.service,
        environment=session.view.environment,
        tags=session.tags,
        metadata=session.metadata,
    )
