"""
From a callback's arguments to records offered to the ring: `Capture.begin`, `end`, `end_model`, `fail`, `note`.

What runs for every callback: measured in tests/benchmarks, and written for it. Its methods never raise.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from runtap_collector.content import MAX_CONTENT_BYTES, obvious_size, to_json
from runtap_collector.failures import describe_error, status_of
from runtap_collector.logs import RareLog
from runtap_collector.records import (
    RECORD_BYTES,
    Note,
    OpenRun,
    Outcome,
    Record,
    Route,
    Session,
    Stream,
    View,
    end_of,
    note_of,
    streamed_of,
    without_data,
)
from runtap_collector.text import add_metadata, clip, clip_tags, is_own_key, name_of
from runtap_collector.translate import add_model, add_response, run_name

if TYPE_CHECKING:
    from langchain_core.outputs import LLMResult

    from runtap_collector.emitter import Emitter

MAX_EVENT_BYTES = 256 * 1024
# Streamed text is joined over this long, or until it is long.
STREAM_NS = 100_000_000
_MAX_STREAM_LENGTH = 16 * 1024
# What is surely larger is not even written: milliseconds in the app's thread, for nothing. An image may shrink.
_MAX_WRITTEN_BYTES = 8 * 1024 * 1024
_NOTHING: Mapping[str, Any] = {}
# Of runs that are no model's, where there is nothing else to say. Never changed.
_OK = Outcome("ok")
_INTERRUPTED = Outcome("interrupted")
_NO_TAGS: list[str] = []
_MISSING = object()
_MAX_CHILD_ERRORS = 8
_MAX_COUNT = 2**63 - 1

current_session: ContextVar[Session | None] = ContextVar("runtap_session", default=None)

_warnings = RareLog()


class Capture:
    """
    What one handler does with its callbacks: the emitter it offers to, and whose runs they are.
    """

    def __init__(self, emitter: Emitter, view: View) -> None:
        self._emitter = emitter
        self._view = view
        # Off: runs that begin are let pass, unless their parent is open; runs that are open still end.
        self.is_on = True

    def open_run(self, run_id: UUID) -> OpenRun | None:
        """
        The open run of that id.
        """
        return self._emitter.open_runs.by_key.get(run_id.int)

    def begin(
        self,
        run_type: str,
        serialized: Mapping[str, Any] | None,
        run_id: UUID,
        parent_run_id: UUID | None,
        tags: list[str] | None,
        metadata: Mapping[str, Any] | None,
        kwargs: Mapping[str, Any],
        inputs: object,
    ) -> None:
        """
        Reports that a run began. Does nothing where another handler has.
        """
        try:
            emitter = self._emitter
            open_runs = emitter.open_runs
            by_key = open_runs.by_key
            key = run_id.int
            if key in by_key:
                return
            parent = None
            if parent_run_id is not None:
                parent = by_key.get(parent_run_id.int)
            if parent is not None:
                route = parent.route
            elif not self.is_on:
                return
            else:
                route = Route(run_id) if parent_run_id is None else open_runs.route_under(parent_run_id)
            name = run_name(serialized, kwargs.get("name"), run_type)
            run = OpenRun(run_id, parent_run_id, run_type, name, self._view, route, self)
            if metadata is None:
                metadata = _NOTHING
            _add_context(run, parent, tags, metadata)
            if run_type == "llm":
                add_model(run, serialized, metadata, kwargs.get("invocation_params") or _NOTHING)
            if self._view.captures_content:
                self._add_inputs(run, inputs)
            if by_key.setdefault(key, run) is not run:
                # Another handler came first.
                emitter.ring.release(run.reserved_bytes)
                return
            if emitter.ring.offer_start(run):
                emitter.wake()
            if len(by_key) > open_runs.max_runs:
                emitter.evict_runs()
        except Exception:  # noqa: BLE001 - an app must not fail because its telemetry does
            self.count_failure("run.started")

    def _add_inputs(self, run: OpenRun, inputs: object) -> None:
        json, lost_bytes = self._content_of(inputs)
        if json is not None and self._emitter.ring.reserve_content(len(json)):
            run.inputs = json
            run.reserved_bytes = len(json)
        else:
            run.input_bytes = lost_bytes or len(json or b"")

    def add_token(self, run: OpenRun, token: object) -> None:
        """
        Joins streamed text, and reports it every 100 ms: what comes after a pause at once.
        """
        text = token if isinstance(token, str) else _text_of(token)
        if not text:
            return
        stream = run.stream
        if stream is None:
            stream = run.stream = Stream()
        stream.parts.append(text)
        stream.length += len(text)
        now_ns = time.monotonic_ns()
        if now_ns - stream.sent_monotonic_ns > STREAM_NS or stream.length > _MAX_STREAM_LENGTH:
            self._offer_stream(run, stream, now_ns)

    def _offer_stream(self, run: OpenRun, stream: Stream, now_ns: int) -> None:
        text = clip("".join(stream.parts), _MAX_STREAM_LENGTH)
        if stream.length > len(text):
            self._emitter.ring.count_content_lost()
        index = stream.index
        stream.index += len(stream.parts)
        stream.parts, stream.length, stream.sent_monotonic_ns = [], 0, now_ns
        self._emitter.offer(streamed_of(run, index, text))

    def end(self, run_id: UUID, outputs: object) -> None:
        """
        Reports that a run ended well, or by an interrupt of a run below it.
        """
        try:
            run = self._emitter.open_runs.end(run_id.int)
            if run is not None:
                self._offer_end(run, _INTERRUPTED if run.interrupted else _OK, outputs)
        except Exception:  # noqa: BLE001
            self.count_failure("run.ended")

    def end_model(self, run_id: UUID, response: LLMResult) -> None:
        """
        Reports that a model answered.
        """
        try:
            run = self._emitter.open_runs.end(run_id.int)
            if run is not None:
                outcome = Outcome("ok")
                self._add_response(run, outcome, response)
                self._offer_end(run, outcome, response.generations)
        except Exception:  # noqa: BLE001
            self.count_failure("run.ended")

    def fail(self, run_id: UUID, error: BaseException, response: LLMResult | None = None) -> None:
        """
        Reports that a run ended with an exception. `response` is what a model had answered until then.
        """
        try:
            open_runs = self._emitter.open_runs
            run = open_runs.end(run_id.int)
            if run is None:
                return
            outcome = Outcome(status_of(error))
            if outcome.status == "error":
                outcome.error = describe_error(error, run.run_type, run.child_errors or [])
                parent = open_runs.parent_of(run)
                if parent is not None:
                    parent.child_errors = [*(parent.child_errors or ())[-_MAX_CHILD_ERRORS:], (error, outcome.error)]
            elif outcome.status == "interrupted":
                open_runs.mark_interrupted(run)
            if response is not None:
                self._add_response(run, outcome, response)
            self._offer_end(run, outcome, None if response is None else response.generations)
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
        """
        Reports a run that no callback saw: it ends now, and began that long ago.
        """
        try:
            _add_context(run, None, tags, metadata)
            run.started_at_ns = time.time_ns() - duration_ns
            run.started_monotonic_ns = time.monotonic_ns() - duration_ns
            self._offer_end(run, outcome, None)
        except Exception:  # noqa: BLE001
            self.count_failure("run.ended")

    def note(self, run_id: UUID, kind: str, name: object, data: object, *, attempt: int | None = None) -> None:
        """
        Reports that something happened within a run.
        """
        try:
            run = self.open_run(run_id)
            if run is None or run.owner is not self:
                return
            note = Note(kind, name_of(name), attempt if attempt is None or 0 <= attempt <= _MAX_COUNT else None)
            if data is not None and self._view.captures_content:
                note.data, note.lost_bytes = self._content_of(data)
                if note.data is not None and not self._emitter.ring.has_content_room(len(note.data)):
                    note = without_data(note)
            self._emitter.offer(note_of(run, note))
        except Exception:  # noqa: BLE001
            self.count_failure("run.noted")

    def _add_response(self, run: OpenRun, outcome: Outcome, response: LLMResult) -> None:
        # A provider's odd answer must not cost the run its end.
        try:
            running = run.streamed_usage if run.has_running_usage else None
            add_response(outcome, response, run.first_token_ns > 0, running)
        except Exception:  # noqa: BLE001
            _warnings.warn("response_not_understood", run_id=str(run.run_id), exc_info=True)

    def _offer_end(self, run: OpenRun, outcome: Outcome, outputs: object) -> None:
        ended_monotonic_ns = time.monotonic_ns()
        # The start's record may wait for long, and these are the app's.
        run.given_metadata, run.child_errors = _NOTHING, None
        if run.stream is not None and run.stream.parts:
            self._offer_stream(run, run.stream, ended_monotonic_ns)
        ring = self._emitter.ring
        json: bytes | None = None
        lost_bytes = 0
        if run.view.captures_content and outputs is not None:
            json, lost_bytes = self._content_of(outputs)
            if json is not None and not ring.has_content_room(len(json)):
                lost_bytes, json = len(json), None
        record = end_of(run, outcome, ended_monotonic_ns, json, lost_bytes)
        if record.has_content and record.size_bytes > MAX_EVENT_BYTES + RECORD_BYTES:
            record = self._without_content(run, outcome, ended_monotonic_ns, lost_bytes + len(json or b""))
        run.inputs = None
        if ring.offer(record, run.reserved_bytes):
            self._emitter.wake()

    def _without_content(self, run: OpenRun, outcome: Outcome, ended_monotonic_ns: int, lost_bytes: int) -> Record:
        self._emitter.ring.count_content_lost()
        run.input_bytes += len(run.inputs or b"")
        run.inputs = None
        return end_of(run, outcome, ended_monotonic_ns, None, lost_bytes)

    def _content_of(self, value: object) -> tuple[bytes | None, int]:
        """
        JSON of captured content, or its size where it is too large to keep.
        """
        size_bytes = obvious_size(value)
        if size_bytes > _MAX_WRITTEN_BYTES:
            self._emitter.ring.count_content_lost()
            return None, size_bytes
        try:
            json = to_json(value)
        except (orjson.JSONEncodeError, RecursionError, ValueError, TypeError):
            self._emitter.ring.count_content_lost()
            return None, 0
        if len(json) > MAX_CONTENT_BYTES:
            self._emitter.ring.count_content_lost()
            return None, len(json)
        return json, 0

    def count_failure(self, kind: str) -> None:
        """
        Counts an event that was lost to a failure of our own, and says so at most once a minute.
        """
        # A token is no event.
        if kind != "run.streamed":
            self._emitter.ring.count_lost(kind, "internal_error")
        _warnings.warn("callback_failed", kind=kind, exc_info=True)


def _add_context(run: OpenRun, parent: OpenRun | None, tags: list[str] | None, metadata: Mapping[str, Any]) -> None:
    """
    Adds session, user, tags and metadata: the run's own first, then its parent's session, then the block's.
    """
    session = current_session.get()
    if session is not None and session.tags:
        tags = [*session.tags, *(tags or ())]
    run.tags = clip_tags(tags) if tags else _NO_TAGS
    run.session, run.given_metadata = session, metadata
    if parent is not None and parent.session is session:
        own_keys = _shared_keys(parent.given_metadata, metadata) if metadata else 0
        if own_keys == parent.own_keys:
            run.session_id, run.user_id, run.metadata = parent.session_id, parent.user_id, parent.metadata
            run.own_keys = own_keys
            return
    session_id = name_of(metadata.get("session_id"))
    user_id = name_of(metadata.get("user_id"))
    if parent is not None:
        session_id = session_id or parent.session_id
        user_id = user_id or parent.user_id
    kept = dict(run.view.metadata)
    if session is not None:
        session_id = session_id or session.session_id
        user_id = user_id or session.user_id
        kept.update(session.metadata)
    run.session_id = session_id or name_of(metadata.get("conversation_id") or metadata.get("thread_id"))
    run.user_id = user_id
    if metadata:
        add_metadata(kept, metadata)
        run.own_keys = sum(map(is_own_key, metadata))
    run.metadata = kept


def _text_of(blocks: object) -> str:
    """
    The text among content blocks.
    """
    if not isinstance(blocks, list):
        return ""
    texts = [
        block if isinstance(block, str) else block.get("text") for block in blocks if isinstance(block, (str, dict))
    ]
    return "".join(text for text in texts if isinstance(text, str))


def _shared_keys(parents: Mapping[str, Any], metadata: Mapping[str, Any]) -> int:
    """
    How many of the user's keys a run shares with its parent, as the same objects; -1: one of them differs.

    Not `==`, which a foreign value may refuse. Children inherit their parent's metadata, and LangChain's own keys
    differ from run to run.
    """
    count = 0
    for key, value in metadata.items():
        if is_own_key(key):
            if parents.get(key, _MISSING) is not value:
                return -1
            count += 1
    return count


def make_session(
    session_id: str,
    view: View,
    user_id: str | None,
    tags: Sequence[str] | None,
    metadata: Mapping[str, Any] | None,
) -> Session:
    """
    A session with everything made to fit the contract's limits.

    Raises:
        ValueError: the session id is empty.
    """
    name = name_of(session_id)
    if name is None:
        raise ValueError("a session needs an id that is not empty")
    kept = dict(view.metadata)
    add_metadata(kept, metadata or {})
    return Session(name, view, name_of(user_id), clip_tags(tags or ()), kept)
