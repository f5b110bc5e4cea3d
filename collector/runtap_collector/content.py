"""
Captured content as JSON. Done in the callback, since the app goes on to change these objects.
"""

from __future__ import annotations

from typing import Any

import orjson

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
# What two of them leave for the facts of an event of 256 KiB.
MAX_CONTENT_BYTES = 96 * 1024
_MAX_TEXT_LENGTH = 10_000
_MESSAGE_FIELDS = ("type", "name", "id", "content", "tool_calls", "tool_call_id", "status")


def to_json(value: object) -> bytes:
    """
    JSON of any object: messages and documents by what they say, what has no such form by its `str`.

    Raises:
        orjson.JSONEncodeError: it is nested too deeply, or contains itself.
    """
    # orjson's result holds kilobytes more than its length for as long as it lives.
    return bytes(memoryview(orjson.dumps(value, default=_plain, option=_OPTIONS)))


def _plain(value: Any) -> Any:
    if hasattr(value, "content") and hasattr(value, "type"):
        picked = {name: getattr(value, name, None) for name in _MESSAGE_FIELDS}
        return {name: part for name, part in picked.items() if part not in (None, "", [])}
    if hasattr(value, "page_content"):
        return {"page_content": value.page_content, "metadata": getattr(value, "metadata", {})}
    if hasattr(value, "to_messages"):
        return value.to_messages()
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    return str(value)[:_MAX_TEXT_LENGTH]
