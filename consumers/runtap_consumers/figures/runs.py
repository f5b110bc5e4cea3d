"""Single runs as people and JSON see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict
from zoneinfo import ZoneInfo

import orjson

from runtap_consumers.errors import InputError
from runtap_consumers.figures.shapes import Dollars, Instant, pick
from runtap_consumers.instants import dollars, format_instant, seconds

ABANDONED_NS = 3600 * 10**9
PROJECTION = "runs"


class Run(TypedDict):
    """One run; an open one has no end and no usage yet. `error_origin`: whether the error arose in it, or passed
    through.
    """

    run_id: str
    parent_run_id: str | None
    trace_id: str
    session_id: str | None
    user_id: str | None
    service: str | None
    environment: str | None
    run_type: str
    name: str | None
    provider: str | None
    request_model: str | None
    model: str | None
    status: str
    finish_reason: str | None
    error_type: str | None
    error_category: str | None
    error_status_code: int | None
    error_code: str | None
    error_raised_at: str | None
    error_message: str | None
    error_origin: bool | None
    started_at: Instant
    duration_seconds: float | None
    first_token_seconds: float | None
    input_tokens: int | None
    output_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    cache_write_5m_tokens: int | None
    cache_write_1h_tokens: int | None
    input_audio_tokens: int | None
    input_image_tokens: int | None
    output_audio_tokens: int | None
    web_searches: int | None
    usage_source: str | None
    model_source: str | None
    root_name: str | None
    cost_usd: Dollars | None
    tags: list[str] | None
    metadata: dict[str, Any] | None


def abandoned_before(complete_to_ns: int | None) -> int | None:
    """A run that started before that instant and has not ended is abandoned; `None` where nothing can be said."""
    return None if complete_to_ns is None else complete_to_ns - ABANDONED_NS


def metadata_pair(text: str | None) -> tuple[str, str] | None:
    """What `KEY=VALUE` asks for."""
    if text is None:
        return None
    key, sign, value = text.partition("=")
    if not sign:
        raise InputError(f"metadata {text!r}: expected KEY=VALUE, as in team=search")
    return key, value


def describe_run(row: Mapping[str, Any], abandoned_before_ns: int | None, zone: ZoneInfo) -> Run:
    """One run in the shape of `runtap runs --json`: null where unknown.

    Args:
        row: of the table of ended runs, or of that of open ones.
        abandoned_before_ns: what `abandoned_before` returned.
        zone: of its times.
    """
    status = row.get("status")
    if status is None:
        is_abandoned = abandoned_before_ns is not None and row["started_at_ns"] < abandoned_before_ns
        status = "abandoned" if is_abandoned else "open"
    origin = row.get("error_origin")
    return {
        **pick(Run, row),
        "status": status,
        "error_origin": None if origin is None else bool(origin),
        "started_at": format_instant(row["started_at_ns"], zone),
        "duration_seconds": seconds(row.get("duration_ns")),
        "first_token_seconds": seconds(row.get("first_token_ns")),
        "cache_write_tokens": _known_sum(row.get("cache_write_5m_tokens"), row.get("cache_write_1h_tokens")),
        "cost_usd": dollars(row.get("cost_picodollars")),
        "tags": _parse(row.get("tags")),
        "metadata": _parse(row.get("metadata")),
    }


def _known_sum(*parts: int | None) -> int | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def _parse(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)
