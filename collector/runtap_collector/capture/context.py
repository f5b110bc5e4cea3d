"""Whose a run is, and with which metadata: `context_of`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtap_collector.capture.text import add_metadata, name_of, own_keys
from runtap_collector.send.parts import encode_shared
from runtap_collector.send.records import Context, MetadataValues, OpenRun, Session

_NOTHING: Mapping[str, Any] = {}
_MISSING = object()


def context_of(run: OpenRun) -> Context:
    """The context of a run; that of the runs above it is worked out first."""
    if run.context is not None:
        return run.context
    if run.parent is None or run.parent.context is not None:
        return _work_out(run)
    # No recursion: runs may be nested deeper than Python lets functions be.
    unknown = [run]
    while (parent := unknown[-1].parent) is not None and parent.context is None:
        unknown.append(parent)
    while len(unknown) > 1:
        _work_out(unknown.pop())
    return _work_out(run)


def _work_out(run: OpenRun) -> Context:
    """Session and user: the run's own first, then its parent's, then the block's."""
    metadata, session, parent = run.metadata or _NOTHING, run.session, run.parent
    context = None if parent is None else parent.context
    if parent is None or context is None or not _inherits(context, parent, session, metadata):
        context = _make(run.view.metadata, metadata, session, context)
    # A callback's thread and the sender's may both be here, and a run's end lets go of what this is made of as soon as
    # there is one: the first is whole.
    if run.context is None:
        run.context = context
    return run.context


def _inherits(above: Context, parent: OpenRun, session: Session | None, metadata: Mapping[str, Any]) -> bool:
    """Whether neither the run nor its block names another session, user or metadata than the run above has."""
    if parent.session is not session:
        return False
    shared_count = _count_shared(parent.metadata or _NOTHING, metadata) if metadata else 0
    return shared_count == above.own_keys


def _make(
    view_metadata: MetadataValues, metadata: Mapping[str, Any], session: Session | None, above: Context | None
) -> Context:
    session_id, user_id = name_of(metadata.get("session_id")), name_of(metadata.get("user_id"))
    if above is not None:
        session_id, user_id = session_id or above.session_id, user_id or above.user_id
    kept = dict(view_metadata)
    if session is not None:
        session_id, user_id = session_id or session.session_id, user_id or session.user_id
        kept.update(session.metadata)
    context = Context(
        kept,
        session_id or name_of(metadata.get("conversation_id")) or name_of(metadata.get("thread_id")),
        user_id,
    )
    if metadata:
        add_metadata(kept, metadata)
        context.own_keys = len(own_keys(metadata))
    context.shared = encode_shared(context)
    return context


def _count_shared(parents: Mapping[str, Any], metadata: Mapping[str, Any]) -> int:
    """How many of the user's keys a run shares with its parent, as the same objects; -1: one of them differs.

    Not `==`, which a foreign value may refuse. Children inherit their parent's metadata, and LangChain's own keys
    differ from run to run.
    """
    keys = own_keys(metadata)
    for key in keys:
        if parents.get(key, _MISSING) is not metadata.get(key):
            return -1
    return len(keys)
