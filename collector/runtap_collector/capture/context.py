"""Whose a run is, and with which metadata, worked out when it begins: `context_of`."""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_
from typing import Any

from runtap_collector.capture.text import add_metadata, name_of, own_keys
from runtap_collector.send.parts import encode_shared
from runtap_collector.send.records import Context, OpenRun

_NOTHING: Mapping[str, Any] = {}


def context_of(run: OpenRun, parent: OpenRun | None = None) -> Context:
    """Session and user: the run's own first, then those of the open run above it, then the block's."""
    metadata, session = run.metadata or _NOTHING, run.session
    keys = own_keys(metadata) if metadata else ()
    if parent is not None and session is parent.session and keys == parent.context.own_keys:
        # Nearly always LangChain hands on the same objects as to the parent. By identity: `==` of a foreign value may
        # raise, and holds for 1 and True.
        its_metadata = parent.metadata or _NOTHING
        if not keys or all(map(is_, map(metadata.get, keys), map(its_metadata.get, keys))):
            return parent.context
    session_id, user_id = name_of(metadata.get("session_id")), name_of(metadata.get("user_id"))
    if parent is not None:
        session_id, user_id = session_id or parent.context.session_id, user_id or parent.context.user_id
    kept = dict(run.view.metadata)
    if session is not None:
        session_id, user_id = session_id or session.session_id, user_id or session.user_id
        kept.update(session.metadata)
    if keys:
        add_metadata(kept, metadata)
        session_id = session_id or name_of(metadata.get("conversation_id")) or name_of(metadata.get("thread_id"))
    return Context(kept, session_id, user_id, keys, encode_shared(session_id, user_id, kept))
