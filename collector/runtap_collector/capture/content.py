"""Captured content as JSON. Done in the callback, since the app goes on to change these objects."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import orjson

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
# Two of them (input and output) and the facts fit into an event of 256 KiB.
_MAX_CONTENT_BYTES = 96 * 1024
# Encoding what is larger would take milliseconds in the app's thread and be cut anyway, but for images.
_MAX_WRITTEN_BYTES = 8 * 1024 * 1024
_MAX_TEXT_LENGTH = 10_000
_LEAST_BINARY_LENGTH = 1_000
_MAX_BLOCK_DEPTH = 5
_BINARY = re.compile(r"(?:data:([\w/+.-]{1,80})(?:;[\w=.-]{1,80})*;base64,)?([A-Za-z0-9+/_-]{900,}={0,2})", re.ASCII)
_MESSAGE_FIELDS = ("type", "name", "id", "content", "tool_calls", "tool_call_id", "status")


def content_of(value: object) -> tuple[bytes | None, int]:
    """JSON of any object, and its size in bytes: messages and documents by what they say, what has no such form by its
    `str`. `None`: it is too large to keep, and the size at least so much; size 0: it cannot be written, nested too
    deeply or part of itself.
    """
    if isinstance(value, (str, dict)):
        parts = (value,) if isinstance(value, str) else value.values()
        size_bytes = sum([len(part) for part in parts if isinstance(part, str)])
        if size_bytes > _MAX_WRITTEN_BYTES:
            return None, size_bytes
    plain = _Plain()
    try:
        # orjson's result holds kilobytes more than its length for as long as it lives.
        json = bytes(memoryview(orjson.dumps(value, default=plain, option=_OPTIONS)))
    except (orjson.JSONEncodeError, RecursionError, ValueError, TypeError):
        return None, plain.size_bytes if plain.size_bytes > _MAX_CONTENT_BYTES else 0
    return json if len(json) <= _MAX_CONTENT_BYTES else None, len(json)


class _Plain:
    """Plain forms of objects, until they would be too large: each takes microseconds, and there may be thousands."""

    __slots__ = ("size_bytes",)

    def __init__(self) -> None:
        # At least, of what was asked for so far.
        self.size_bytes = 0

    def __call__(self, value: Any) -> Any:
        plain = _plain(value)
        parts = plain.values() if type(plain) is dict else (plain,)
        self.size_bytes += 3 + sum([len(part) for part in parts if type(part) is str])
        if self.size_bytes > _MAX_CONTENT_BYTES:
            raise ValueError("too large to keep")
        return plain


def _without_binaries(part: Any, depth: int = 0) -> Any:
    """Content blocks with the data of images and sounds replaced by type, size and hash."""
    if isinstance(part, str):
        match = _BINARY.fullmatch(part) if len(part) >= _LEAST_BINARY_LENGTH else None
        return part if match is None else _describe_binary(match.group(1) or "base64", match.group(2))
    if depth < _MAX_BLOCK_DEPTH and isinstance(part, dict):
        return {name: _without_binaries(value, depth + 1) for name, value in part.items()}
    if depth < _MAX_BLOCK_DEPTH and isinstance(part, list):
        return [_without_binaries(value, depth + 1) for value in part]
    return part


def _describe_binary(kind: str, text: str) -> str:
    try:
        data = base64.b64decode(text, altchars=b"-_" if "-" in text or "_" in text else None)
    except ValueError:
        data = text.encode()
    return f"<{kind}, {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()[:16]}>"


def _plain(value: Any) -> Any:
    # Not `hasattr`, where LangChain's objects are: what they lack costs 15 microseconds each.
    fields = getattr(value, "__dict__", None)
    if fields:
        if "content" in fields and "type" in fields:
            return _plain_message(fields)
        if "message" in fields and "generation_info" in fields:
            # A generation's own text repeats the message's.
            return {name: fields[name] for name in ("type", "generation_info", "message") if fields.get(name)}
        if "page_content" in fields:
            return {"page_content": fields["page_content"], "metadata": fields.get("metadata", {})}
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    if hasattr(value, "to_messages"):
        return value.to_messages()
    if hasattr(value, "model_dump"):
        return value.model_dump()
    return str(value)[:_MAX_TEXT_LENGTH]


def _plain_message(fields: dict[str, Any]) -> dict[str, Any]:
    picked = {}
    for name in _MESSAGE_FIELDS:
        part = fields.get(name)
        if part:
            picked[name] = part if name != "content" or type(part) is str else _without_binaries(part)
    return picked
