"""
What a run's start tells about it: `context_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtap_collector.parts import encode_shared
from runtap_collector.records import Context, OpenRun
from runtap_collector.text import add_metadata, clip_tags, name_of, own_keys
from runtap_collector.translate import add_model, run_name

_NOTHING: Mapping[str, Any] = {}
_NO_TAGS: list[str] = []
_MISSING = object()


def context_of(run: OpenRun) -> Context:
    """
    The context of a run; that of the runs above it is worked out first.
    """
    if run.context is None:
        # No recursion: runs may be nested deeper than Python lets functions be.
        unknown = [run]
        while (parent := unknown[-1].parent) is not None and parent.context is None:
            unknown.append(parent)
        for each in reversed(unknown):
            # Published when it is complete: a callback's thread and the sender's may both be here.
            each.context = _work_out(each)
    assert run.context is not None
    return run.context


def _work_out(run: OpenRun) -> Context:
    """
    Names, tags and metadata; session and user: the run's own first, then its parent's, then the block's.
    """
    metadata = run.metadata or _NOTHING
    session, parent, tags = run.session, run.parent, run.tags
    if session is not None and session.tags:
        tags = [*session.tags, *(tags or ())]
    context = Context(run_name(run.serialized, run.given_name, run.run_type), clip_tags(tags) if tags else _NO_TAGS, {})
    above = None if parent is None else parent.context
    if parent is None or not _inherits(context, run, parent, metadata):
        session_id, user_id = name_of(metadata.get("session_id")), name_of(metadata.get("user_id"))
        if above is not None:
            session_id, user_id = session_id or above.session_id, user_id or above.user_id
        kept = dict(run.view.metadata)
        if session is not None:
            session_id, user_id = session_id or session.session_id, user_id or session.user_id
            kept.update(session.metadata)
        context.session_id = session_id or name_of(metadata.get("conversation_id") or metadata.get("thread_id"))
        context.user_id = user_id
        if metadata:
            add_metadata(kept, metadata)
            context.own_keys = len(own_keys(metadata))
        context.metadata = kept
        context.shared = encode_shared(context)
    if run.run_type == "llm":
        add_model(context, run.serialized, metadata, run.invocation or _NOTHING)
    return context


def _inherits(context: Context, run: OpenRun, parent: OpenRun, metadata: Mapping[str, Any]) -> bool:
    """
    Takes session, user and metadata over from the run above, where neither the run nor its block names others.
    """
    above = parent.context
    if above is None or parent.session is not run.session:
        return False
    shared_count = _count_shared(parent.metadata or _NOTHING, metadata) if metadata else 0
    if shared_count != above.own_keys:
        return False
    context.session_id, context.user_id, context.metadata = above.session_id, above.user_id, above.metadata
    context.own_keys, context.shared = shared_count, above.shared
    return True


def _count_shared(parents: Mapping[str, Any], metadata: Mapping[str, Any]) -> int:
    """
    How many of the user's keys a run shares with its parent, as the same objects; -1: one of them differs.

    Not `==`, which a foreign value may refuse. Children inherit their parent's metadata, and LangChain's own keys
    differ from run to run.
    """
    keys = own_keys(metadata)
    for key in keys:
        if parents.get(key, _MISSING) is not metadata.get(key):
            return -1
    return len(keys)
