"""Passwords cut out of what is shown or logged: `without_passwords`; `shown` for a setting's value."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

_MASK = "***"
# user:password@ with or without a scheme before it, up to the last @ of the word; and password=… up to the word's end.
# `user:password@` itself stands in our own messages, as what is expected.
_CREDENTIALS = re.compile(
    r"([a-z][\w+.-]*://)(?!user:password@host)\S*@|(?<!\S)(?![a-z][\w+.-]*://)[^\s'\"]*:\S*@", re.IGNORECASE
)
_SECRET_FIELD = re.compile(r"((?:pass\w*|pwd|secret|token)=)[^\s]+", re.IGNORECASE)
# A mistyped URL may hold a password anywhere, so such a value is not shown at all.
_MAY_HOLD_SECRET = re.compile(r"@|pass|pwd|secret|token", re.IGNORECASE)
_SCHEME = re.compile(r"(?!sqlite)([\w+.-]+:)(?!\d+\s*(?:,|$))", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """Text from anywhere, such as another library's error, without the passwords of URLs in it."""
    return _SECRET_FIELD.sub(rf"\1{_MASK}", _CREDENTIALS.sub(rf"\g<1>{_MASK}@", text))


def shown(value: object) -> str:
    """A setting's wrong value as its error names it: whole where it can hold no password, else the scheme alone."""
    if isinstance(value, str):
        if _MAY_HOLD_SECRET.search(value):
            return _MASK
        if scheme := _SCHEME.match(value):
            return repr(f"{scheme[1]}{_MASK}")
    return f"{value!r:.200}"


def mask_log_event(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor of structlog's that masks every text of a log line, tracebacks included."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = without_passwords(value)
    return event
