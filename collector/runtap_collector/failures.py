"""
Exceptions to facts: `status_of`, `describe_error`.

Classes are told by their names and modules, so neither langgraph nor any provider's SDK need be installed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import re
from functools import lru_cache
from types import TracebackType
from typing import Any

from runtap_collector.text import clip
from runtap_schemas import RunError
from runtap_schemas.events import MAX_NAME_LENGTH, MAX_TEXT_LENGTH, Status

_CANCELLED = (asyncio.CancelledError, concurrent.futures.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)

# The first pattern that fits a class's name, or a base class's, names its category.
_CATEGORIES = [
    (re.compile(pattern), category)
    for pattern, category in [
        (r"ContentFilter|ContentPolicy|BlockedPrompt|SafetyError", "content_filter"),
        (r"RateLimit|TooManyRequests|ResourceExhausted|Throttl|QuotaExceeded", "rate_limit"),
        (r"Timeout|TimedOut|DeadlineExceeded", "timeout"),
        (r"Authentication|PermissionDenied|Unauthor|Forbidden|Unauthenticated|AccessDenied", "auth"),
        (r"BadRequest|UnprocessableEntity|NotFoundError|InvalidRequest|InvalidArgument|ContextOverflow", "bad_request"),
        (r"ConnectionError|ConnectError|APIConnection|RemoteProtocolError|ReadError|ServiceUnavailable", "connection"),
        (r"^ToolException$|^ToolInvocationError$", "tool"),
    ]
]
# What SDKs hang on their exceptions. A server's own failure (5xx) is none of the categories.
_STATUS_CODES = {
    400: "bad_request",
    401: "auth",
    403: "auth",
    404: "bad_request",
    408: "timeout",
    413: "bad_request",
    422: "bad_request",
    429: "rate_limit",
    504: "timeout",
}
_GENERAL_CLASSES = frozenset({"object", "BaseException", "Exception", "OSError"})

_CHANGING_PARTS: list[tuple[re.Pattern[str], str]] = [
    (re.compile(r"https?://\S+"), "<url>"),
    (re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"), "<id>"),
    (re.compile(r"\b0x[0-9a-fA-F]+\b"), "<id>"),
    (re.compile(r"\b(?:[a-z]{2,12}[_-])[A-Za-z0-9]*\d[A-Za-z0-9]{5,}\b"), "<id>"),
    (re.compile(r"\b(?=[0-9a-fA-F]*\d)[0-9a-fA-F]{8,}\b"), "<id>"),
    (re.compile(r"'[^'\n]{1,200}'|\"[^\"\n]{1,200}\""), "<text>"),
    (re.compile(r"\d+(?:\.\d+)?"), "<n>"),
]


def status_of(error: BaseException) -> Status:
    """
    The status of a run that ended with this exception: leaving a graph on purpose is no error, nor is being cancelled.
    """
    kind: Any = type(error)
    return _status_of_type(kind)


@lru_cache(maxsize=1_024)
def _status_of_type(kind: type) -> Status:
    if issubclass(kind, _CANCELLED):
        return "cancelled"
    graph_classes = {base.__name__ for base in kind.__mro__ if base.__module__.startswith("langgraph")}
    if "GraphInterrupt" in graph_classes:
        return "interrupted"
    if "GraphBubbleUp" in graph_classes:
        return "ok"
    return "error"


def describe_error(error: BaseException, run_type: str, known: list[tuple[BaseException, RunError]]) -> RunError:
    """
    The error of a run.

    Args:
        error: what the run ended with.
        run_type: LangChain's kind of run.
        known: exceptions with which children of the run ended. One of them passing through is no origin here.
    """
    for child_error, described in known:
        if child_error is error:
            return RunError(
                type=described.type,
                category=described.category,
                message=described.message,
                fingerprint=described.fingerprint,
                origin=False,
            )
    name = clip(type(error).__name__, MAX_NAME_LENGTH)
    message = clip(_message_of(error), MAX_TEXT_LENGTH)
    return RunError(
        type=name,
        category=_category_of(error, run_type),
        message=message,
        fingerprint=_fingerprint(name, _place_of(error.__traceback__), message),
    )


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an exception may fail to describe itself, and the app's must not become ours
        return ""


def _category_of(error: BaseException, run_type: str) -> str:
    kind: Any = type(error)
    category = _category_of_type(kind)
    if category == "other":
        category = _STATUS_CODES.get(_status_code_of(error), "other")
    return "tool" if category == "other" and run_type == "tool" else category


@lru_cache(maxsize=1_024)
def _category_of_type(kind: type) -> str:
    for base in kind.__mro__:
        if base.__name__ in _GENERAL_CLASSES:
            continue
        for pattern, category in _CATEGORIES:
            if pattern.search(base.__name__):
                return category
    return "other"


def _status_code_of(error: BaseException) -> int:
    code: Any = getattr(error, "status_code", None)
    return code if isinstance(code, int) else 0


def _place_of(traceback: TracebackType | None) -> str:
    if traceback is None:
        return ""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    frame = traceback.tb_frame
    # No line number: an edit above must not make a new group.
    return f"{frame.f_globals.get('__name__', '')}.{frame.f_code.co_qualname}"


def _fingerprint(name: str, place: str, message: str) -> str:
    for pattern, replacement in _CHANGING_PARTS:
        message = pattern.sub(replacement, message)
    return hashlib.sha256(f"{name}|{place}|{message}".encode()).hexdigest()[:16]
