"""
From a callback's arguments to records offered to the ring: `Capture.begin`, `end`, `fail`, `note`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from runtap_collector.content import MAX_CONTENT_BYTES, to_json
from runtap_collector.failures import describe_error, status_of
from runtap_collector.logs import RareLog
from runtap_collector.records import Note, OpenRun, Outcome, Route, RunEnd, RunNote, RunStart, Session, View
from runtap_collector.text import add_metadata, clip_tags, name_of
from runtap_collector.translate import add_model, add_response, run_name

if TYPE_CHECKING:
    from langchain_core.outputs import LLMResult

    from runtap_collector.emitter import Emitter

_NO_METADATA: Mapping[str, Any] = {}
_NO_TAGS: list[str] = []
_MISSING = object()
# Of runs that are no model's, where there is nothing else to say. Never changed.
_OK = Outcome("ok")
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
        return self._emitter.open_runs.get(run_id)

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
        open_runs = self._emitter.open_runs
        if run_id in open_runs:
            return
        parent = open_runs.get(parent_run_id)
        if not self.is_on and parent is None:
            return
        if parent is not None:
            route = parent.route
        elif parent_run_id is not None:
            route = open_runs.route_under(parent_run_id)
        else:
            route = Route(str(run_id))
        name = run_name(serialized, kwargs.get("name"), run_type)
        run = OpenRun(run_id, parent_run_id, run_type, name, self._view, route, self)
        metadata = metadata or _NO_METADATA
        self._add_context(run, parent, tags, metadata)
        if run_type == "llm":
            add_model(run, serialized, metadata, kwargs.get("invocation_params") or _NO_METADATA)
        if self._view.captures_content:
            self._add_inputs(run, inputs)
        start = RunStart(run)
        if not open_runs.begin(run):
            self._emitter.ring.release(run.reserved_bytes)
            return
        self._emitter.offer(start)
        run.started_at_ns = start.at_ns
        run.started_monotonic_ns = start.monotonic_ns
        if open_runs.is_full:
            self._emitter.evict_runs()

    def _add_context(
        self, run: OpenRun, parent: OpenRun | None, tags: list[str] | None, metadata: Mapping[str, Any]
    ) -> None:
        """
        Adds session, user, tags and metadata: the run's own first, then its parent's session, then the block's.
        """
        session = current_session.get()
        if session is not None and session.tags:
            tags = [*session.tags, *(tags or ())]
        run.tags = clip_tags(tags) if tags else _NO_TAGS
        run.session, run.given_metadata = session, metadata
        if parent is not None and parent.session is session and _is_same(parent.given_metadata, metadata):
            run.session_id, run.user_id, run.metadata = parent.session_id, parent.user_id, parent.metadata
            return
        session_id = name_of(metadata.get("session_id"))
        user_id = name_of(metadata.get("user_id"))
        if parent is not None:
            session_id = session_id or parent.session_id
            user_id = user_id or parent.user_id
        kept = dict(self._view.metadata)
        if session is not None:
            session_id = session_id or session.session_id
            user_id = user_id or session.user_id
            kept.update(session.metadata)
        run.session_id = session_id or name_of(metadata.get("conversation_id") or metadata.get("thread_id"))
        run.user_id = user_id
        if metadata:
            add_metadata(kept, metadata)
        run.metadata = kept

    def _add_inputs(self, run: OpenRun, inputs: object) -> None:
        json, lost_bytes = self._content_of(inputs)
        if json is not None and self._emitter.ring.reserve_content(len(json)):
            run.inputs = json
            run.reserved_bytes = len(json)
        else:
            run.input_bytes = lost_bytes or len(json or b"")

    def end(self, run_id: UUID, outputs: object) -> None:
        """
        Reports that a run ended well, or by an interrupt of a run below it.
        """
        run = self._emitter.open_runs.end(run_id)
        if run is not None:
            self._offer_end(run, Outcome("interrupted") if run.interrupted else _OK, outputs)

    def end_model(self, run_id: UUID, response: LLMResult) -> None:
        """
        Reports that a model answered.
        """
        run = self._emitter.open_runs.end(run_id)
        if run is not None:
            outcome = Outcome("ok")
            self._add_response(run, outcome, response)
            self._offer_end(run, outcome, response.generations)

    def fail(self, run_id: UUID, error: BaseException, response: LLMResult | None = None) -> None:
        """
        Reports that a run ended with an exception. `response` is what a model had answered until then.
        """
        open_runs = self._emitter.open_runs
        run = open_runs.end(run_id)
        if run is None:
            return
        outcome = Outcome(status_of(error))
        if outcome.status == "error":
            outcome.error = describe_error(error, run.run_type, run.child_errors or [])
            parent = open_runs.get(run.parent_run_id)
            if parent is not None:
                parent.child_errors = [*(parent.child_errors or ())[-_MAX_CHILD_ERRORS:], (error, outcome.error)]
        elif outcome.status == "interrupted":
            open_runs.mark_interrupted(run)
        run.child_errors = None
        if response is not None:
            self._add_response(run, outcome, response)
        self._offer_end(run, outcome, None if response is None else response.generations)

    def note(self, run_id: UUID, kind: str, name: object, data: object, *, attempt: int | None = None) -> None:
        """
        Reports that something happened within a run.
        """
        run = self._emitter.open_runs.get(run_id)
        if run is None or run.owner is not self:
            return
        note = Note(kind, name_of(name), attempt if attempt is None or 0 <= attempt <= _MAX_COUNT else None)
        if data is not None and self._view.captures_content:
            note.data, note.lost_bytes = self._content_of(data)
        self._emitter.offer(RunNote(run, note))

    def _add_response(self, run: OpenRun, outcome: Outcome, response: LLMResult) -> None:
        # A provider's odd answer must not cost the run its end.
        try:
            add_response(outcome, response, was_streamed=run.first_token_ns is not None)
        except Exception:  # noqa: BLE001
            _warnings.warn("response_not_understood", run_id=str(run.run_id), exc_info=True)

    def _offer_end(self, run: OpenRun, outcome: Outcome, outputs: object) -> None:
        # The record may wait for long, and this is the app's.
        run.given_metadata = _NO_METADATA
        json: bytes | None = None
        lost_bytes = 0
        if outputs is not None and run.view.captures_content:
            json, lost_bytes = self._content_of(outputs)
        self._emitter.offer(RunEnd(run, outcome, json, lost_bytes))

    def _content_of(self, value: object) -> tuple[bytes | None, int]:
        """
        JSON of captured content, or its size where it is too large to keep.
        """
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


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """
    Whether both hold the same objects: children inherit their parent's. Not `==`, which a foreign value may refuse.
    """
    if len(one) != len(other):
        return False
    for key, value in one.items():  # noqa: SIM110 - a generator costs more than all of this
        if other.get(key, _MISSING) is not value:
            return False
    return True


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
    return Session(name, view, name_of(user_id), clip_tags(tags), kept)
