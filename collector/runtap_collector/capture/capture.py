"""From a callback's arguments to events offered to the buffer: `Capture.begin`, `end`, `end_model`, `fail`, `note`.

What runs for every callback: measured in tests/benchmarks, and written for it. Its methods never raise.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from uuid import UUID

from runtap_collector.capture.content import content_of
from runtap_collector.capture.context import context_of
from runtap_collector.capture.failures import describe_error, status_of
from runtap_collector.capture.open_runs import identity_of, key_of
from runtap_collector.capture.text import add_metadata, clip, clip_tags, name_of, own_keys
from runtap_collector.capture.translate import add_response, run_name
from runtap_collector.logs import RareLog
from runtap_collector.send.encoding import note_of, streamed_of
from runtap_collector.send.records import Note, OpenRun, Outcome, Session, Stream, Trace, View
from runtap_schemas.events import MAX_COUNT, MAX_STREAMED_LENGTH

if TYPE_CHECKING:
    from langchain_core.outputs import LLMResult

    from runtap_collector.send.emitter import Emitter

# Streamed text is joined for so long, at most.
STREAM_NS = 100_000_000
_INTERRUPTED = Outcome("interrupted")
_MAX_CHILD_ERRORS = 8

current_session: ContextVar[Session | None] = ContextVar("runtap_session", default=None)

_warnings = RareLog()


class Capture:
    """What one handler does with its callbacks: the emitter it offers to, and whose runs they are."""

    def __init__(self, emitter: Emitter, view: View) -> None:
        self.emitter = emitter
        self.view = view
        # While off, only runs whose parent is open are captured, and those that are open still end.
        self.is_on = True

    def open_run(self, run_id: UUID | str) -> OpenRun | None:
        """The open run of that id."""
        return self.emitter.open_runs.by_key.get(run_id.int if type(run_id) is UUID else key_of(run_id))

    def begin(
        self,
        run_type: str,
        serialized: Mapping[str, Any] | None,
        run_id: UUID | str,
        parent_run_id: UUID | str | None,
        tags: list[str] | None,
        metadata: Mapping[str, Any] | None,
        kwargs: Mapping[str, Any],
        inputs: object,
    ) -> None:
        """Reports that a run began. Does nothing where another handler has."""
        try:
            emitter = self.emitter
            open_runs = emitter.open_runs
            by_key = open_runs.by_key
            if type(run_id) is UUID:
                key: int | str = run_id.int
            else:
                key, run_id = key_of(run_id), identity_of(run_id)
            if key in by_key:
                return
            parent = None
            if type(parent_run_id) is UUID:
                parent = by_key.get(parent_run_id.int)
            elif parent_run_id is not None:
                parent_run_id = identity_of(parent_run_id)
                parent = by_key.get(key_of(parent_run_id))
            if parent is not None:
                trace = parent.trace
            elif not self.is_on:
                return
            else:
                trace = Trace(run_id) if parent_run_id is None else open_runs.trace_under(parent_run_id)
            run = OpenRun(
                run_id,
                parent_run_id,
                run_type,
                kwargs.get("name"),
                self.view,
                trace,
                serialized,
                tags,
                metadata,
                kwargs.get("invocation_params"),
                current_session.get(),
                self,
            )
            if self.view.captures_content:
                run.inputs, run.lost_bytes = self._content_of(inputs)
            if by_key.setdefault(key, run) is not run:
                # Another handler has reported this start.
                return
            if parent_run_id is None:
                trace.root_name = run_name(run)
            run.context = context_of(run, parent)
            if emitter.buffer.offer_start(run):
                emitter.wake()
            if len(by_key) > open_runs.max_runs:
                emitter.evict_runs()
        except Exception:  # noqa: BLE001 - an app must not fail because its telemetry does
            self.count_failure("run.started")

    def add_token(self, run: OpenRun, token: object) -> None:
        """Joins streamed text, and reports it every 100 ms: what comes after a pause at once."""
        text = token if isinstance(token, str) else _text_of(token)
        if not text:
            return
        stream = run.stream
        if stream is None:
            stream = run.stream = Stream()
        stream.parts.append(text)
        stream.length += len(text)
        now_ns = time.monotonic_ns()
        if now_ns - stream.sent_monotonic_ns > STREAM_NS or stream.length > MAX_STREAMED_LENGTH:
            self._offer_stream(run, stream, now_ns)

    def _offer_stream(self, run: OpenRun, stream: Stream, now_ns: int) -> None:
        text = clip("".join(stream.parts), MAX_STREAMED_LENGTH)
        if stream.length > len(text):
            self.emitter.buffer.count_content_lost()
        index = stream.index
        stream.index += len(stream.parts)
        stream.parts, stream.length, stream.sent_monotonic_ns = [], 0, now_ns
        self.emitter.offer(streamed_of(run, index, text))

    def end(self, run_id: UUID | str, outputs: object) -> None:
        """Reports that a run ended well, or by an interrupt of a run below it."""
        try:
            run = self.emitter.open_runs.end(run_id.int if type(run_id) is UUID else key_of(run_id))
            if run is not None:
                if run.interrupted:
                    run.outcome = _INTERRUPTED
                self._offer_end(run, outputs)
        except Exception:  # noqa: BLE001
            self.count_failure("run.ended")

    def end_model(self, run_id: UUID | str, response: LLMResult) -> None:
        """Reports that a model answered."""
        try:
            run = self.emitter.open_runs.end(run_id.int if type(run_id) is UUID else key_of(run_id))
            if run is not None:
                run.outcome = Outcome("ok")
                self._add_response(run, run.outcome, response)
                self._offer_end(run, response.generations)
        except Exception:  # noqa: BLE001
            self.count_failure("run.ended")

    def fail(self, run_id: UUID | str, error: BaseException, response: LLMResult | None = None) -> None:
        """Reports that a run ended with an exception. `response` is what a model had answered until then."""
        try:
            open_runs = self.emitter.open_runs
            run = open_runs.end(run_id.int if type(run_id) is UUID else key_of(run_id))
            if run is None:
                return
            outcome = run.outcome = Outcome(status_of(error))
            if outcome.status == "error":
                outcome.error = describe_error(
                    error, run.run_type, run.child_errors or [], keeps_message=run.view.keeps_error_messages
                )
                parent = open_runs.parent_of(run)
                if parent is not None:
                    parent.child_errors = [*(parent.child_errors or ())[-_MAX_CHILD_ERRORS:], (error, outcome.error)]
            elif outcome.status == "interrupted":
                open_runs.mark_interrupted(run)
            if response is not None:
                self._add_response(run, outcome, response)
            self._offer_end(run, None if response is None else response.generations)
        except Exception:  # noqa: BLE001
            self.count_failure("run.ended")

    def record(
        self,
        run: OpenRun,
        outcome: Outcome,
        duration_ns: int,
        tags: list[str] | None,
        metadata: Mapping[str, Any],
    ) -> None:
        """Reports a run that no callback saw: it ends now, and began that long ago."""
        try:
            run.outcome, run.tags, run.session = outcome, tags, current_session.get()
            run.metadata = {key: metadata[key] for key in own_keys(metadata)}
            run.context = context_of(run)
            run.invocation = {"_type": outcome.provider, "model": outcome.model}
            run.started_at_ns = time.time_ns() - duration_ns
            run.started_monotonic_ns = time.monotonic_ns() - duration_ns
            self._offer_end(run, None)
        except Exception:  # noqa: BLE001
            self.count_failure("run.ended")

    def note(self, run_id: UUID | str, kind: str, name: object, data: object, *, attempt: int | None = None) -> None:
        """Reports that something happened within a run."""
        try:
            run = self.open_run(run_id)
            if run is None or run.owner is not self:
                return
            note = Note(kind, name_of(name), attempt if type(attempt) is int and 0 <= attempt <= MAX_COUNT else None)
            if data is not None and self.view.captures_content:
                note.data, note.lost_bytes = self._content_of(data)
            self.emitter.offer(note_of(run, note))
        except Exception:  # noqa: BLE001
            self.count_failure("run.noted")

    def _add_response(self, run: OpenRun, outcome: Outcome, response: LLMResult) -> None:
        # An answer of an unknown form must not lose the run's end.
        try:
            running = run.streamed_usage if run.has_running_usage else None
            add_response(outcome, response, run.first_token_ns > 0, running)
        except Exception:  # noqa: BLE001
            _warnings.warn("response_not_understood", run_id=str(run.run_id), exc_info=True)

    def _offer_end(self, run: OpenRun, outputs: object) -> None:
        run.duration_ns = time.monotonic_ns() - run.started_monotonic_ns
        # The record of the start may be queued for long, and must not keep the app's exceptions alive.
        run.child_errors = None
        if run.stream is not None and run.stream.parts:
            self._offer_stream(run, run.stream, time.monotonic_ns())
        if outputs is not None and run.view.captures_content:
            run.outputs, lost_bytes = self._content_of(outputs)
            run.lost_bytes += lost_bytes
        if self.emitter.buffer.offer_end(run):
            self.emitter.wake()

    def _content_of(self, value: object) -> tuple[bytes | None, int]:
        """JSON of captured content, or its size where it is too large to keep or there is no room."""
        buffer = self.emitter.buffer
        json, size_bytes = content_of(value)
        if json is not None and buffer.has_content_room(size_bytes):
            return json, 0
        buffer.count_content_lost()
        return None, size_bytes

    def count_failure(self, kind: str) -> None:
        """Counts an event that was lost to a failure of our own, and says so at most once a minute."""
        # A token of a stream is no event of its own: not counted as one that was lost.
        if kind != "run.streamed":
            self.emitter.buffer.count_lost(kind, "internal_error")
        _warnings.warn("callback_failed", kind=kind, exc_info=True)


def _text_of(blocks: object) -> str:
    """The text among content blocks."""
    if not isinstance(blocks, list):
        return ""
    texts = [
        block if isinstance(block, str) else block.get("text") for block in blocks if isinstance(block, (str, dict))
    ]
    return "".join(text for text in texts if isinstance(text, str))


def make_session(
    session_id: str,
    view: View,
    user_id: str | None,
    tags: Sequence[str] | None,
    metadata: Mapping[str, Any] | None,
) -> Session:
    """A session with everything made to fit the contract's limits.

    Raises:
        ValueError: the session id is empty.
    """
    name = name_of(session_id)
    if name is None:
        raise ValueError("a session needs an id that is not empty")
    kept = dict(view.metadata)
    add_metadata(kept, metadata or {})
    return Session(name, view, name_of(user_id), clip_tags(tags or ()), kept)
