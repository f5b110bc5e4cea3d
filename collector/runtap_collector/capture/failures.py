"""Exceptions to facts: `status_of`, `describe_error`.

Classes are told by their names and modules, so neither langgraph nor any provider's SDK need be installed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import re
from collections.abc import Callable
from functools import lru_cache
from types import TracebackType
from typing import Any

from msgspec.structs import replace

from runtap_collector.capture.text import attribute_of, clip, text_of
from runtap_schemas import RunError
from runtap_schemas.events import ERROR_CODE_PATTERN, MAX_NAME_LENGTH, MAX_TEXT_LENGTH, Status

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
        (r"ConnectionError|ConnectError|APIConnection|RemoteProtocolError|ReadError", "connection"),
        (r"InternalServer|ServiceUnavailable|BadGateway|Overloaded", "server"),
        (r"^ToolException$|^ToolInvocationError$", "tool"),
    ]
]
# By the HTTP status that an SDK hangs on its exception; 5xx is the server's own failure.
_STATUS_CODES = {
    400: "bad_request",
    401: "auth",
    403: "auth",
    404: "bad_request",
    408: "timeout",
    413: "bad_request",
    422: "bad_request",
    429: "rate_limit",
}
# Where SDKs keep the HTTP status (openai and anthropic; aiohttp; google-api-core; httpx and requests; botocore) and the
# provider's own word for what went wrong (openai; anthropic; botocore).
_STATUS_PATHS = (
    ("status_code",),
    ("status",),
    ("code",),
    ("response", "status_code"),
    ("response", "ResponseMetadata", "HTTPStatusCode"),
)
_CODE_PATHS = (("code",), ("body", "error", "code"), ("body", "error", "type"), ("response", "Error", "Code"))
_CODE = re.compile(ERROR_CODE_PATTERN)
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
    """The status of a run that ended with this exception; neither interrupting a graph nor cancelling is an error."""
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


def describe_error(
    error: BaseException, run_type: str, known: list[tuple[BaseException, RunError]], *, keeps_message: bool = False
) -> RunError:
    """The error of a run.

    Args:
        error: what the run ended with.
        run_type: LangChain's kind of run.
        known: exceptions with which children of the run ended. One of them passing through is no origin here.
        keeps_message: whether its message goes along. Messages quote prompts, answers, arguments, keys and URLs.
    """
    for child_error, described in known:
        if child_error is error:
            return replace(described, origin=False)
    name = clip(type(error).__name__, MAX_NAME_LENGTH)
    message = clip(text_of(error) or "", MAX_TEXT_LENGTH)
    status_code = _first_of(error, _STATUS_PATHS, _is_http_error)
    function, line = _raised_at(error.__traceback__)
    return RunError(
        type=name,
        category=_category_of(error, status_code, run_type),
        status_code=status_code,
        code=_first_of(error, _CODE_PATHS, _is_code),
        raised_at=f"{clip(function, MAX_NAME_LENGTH - 12)}:{line}" if function else None,
        message=message if keeps_message else None,
        fingerprint=_fingerprint(name, function, message),
    )


def _first_of(error: BaseException, paths: tuple[tuple[str, ...], ...], is_it: Callable[[object], bool]) -> Any:
    """The first value at the end of a path of attributes and keys that is what it should be. `None`: there is none."""
    for path in paths:
        value: object = error
        for name in path:
            value = value.get(name) if isinstance(value, dict) else attribute_of(value, name)
        if is_it(value):
            return value
    return None


def _is_http_error(value: object) -> bool:
    return type(value) is int and 400 <= value <= 599


def _is_code(value: object) -> bool:
    return type(value) is str and _CODE.fullmatch(value) is not None


def _category_of(error: BaseException, status_code: int | None, run_type: str) -> str:
    kind: Any = type(error)
    category = _category_of_type(kind)
    if category == "other" and status_code is not None:
        category = "server" if status_code >= 500 else _STATUS_CODES.get(status_code, "other")
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


def _raised_at(traceback: TracebackType | None) -> tuple[str, int]:
    """Function, with its module, and line of the innermost frame. Code that came from no file has no say: a model may
    have written it, and its names are content.
    """
    function, line = "", 0
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if not code.co_filename.startswith("<"):
            function = f"{traceback.tb_frame.f_globals.get('__name__', '')}.{code.co_qualname}"
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return function, line


def _fingerprint(name: str, function: str, message: str) -> str:
    # Without the line number, or an edit above it would make a new group.
    for pattern, replacement in _CHANGING_PARTS:
        message = pattern.sub(replacement, message)
    return hashlib.sha256(f"{name}|{function}|{message}".encode()).hexdigest()[:16]
