"""Single runs as people and JSON see them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypedDict
from zoneinfo import ZoneInfo

import orjson

from runtap_consumers.errors import InputError, QueryTimeoutError
from runtap_consumers.figures.report import read_completeness
from runtap_consumers.figures.shapes import Dollars, Instant, pick
from runtap_consumers.instants import dollars, format_instant, seconds
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.runs import RunFilter, search_runs
from runtap_consumers.store.read.snapshot import open_snapshot

ABANDONED_NS = 3600 * 10**9
STATUSES = ("ok", "error", "interrupted", "cancelled", "open", "abandoned")
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


@dataclass
class RunPage:
    """Runs that were found, newest first. Not `is_complete`: time was up. What follows comes after `after`, as
    `RunFilter` takes it; `None`: there is no more.
    """

    rows: list[Mapping[str, Any]] = field(default_factory=list)
    is_complete: bool = True
    after: tuple[int, str] | None = None
    abandoned_before_ns: int | None = None


def read_page(store: Store, wanted: RunFilter, limit: int, seconds: float) -> RunPage:
    """At most so many runs that a filter chooses, as far as they are found in so many seconds."""
    # Before the first of them, so that whoever found nothing in time can ask again.
    page = RunPage(after=wanted.after or (2**63 - 1, ""))
    if wanted.status in ("open", "abandoned"):
        page.abandoned_before_ns = _read_boundary(store)
    try:
        with (
            store.limit(seconds),
            open_snapshot(store) as snapshot,
            closing(search_runs(snapshot, wanted, page.abandoned_before_ns, limit + 1)) as found,
        ):
            for row in found:
                if "run_id" in row:
                    if len(page.rows) == limit:
                        break
                    page.rows.append(row)
                page.after = row["started_at_ns"], row.get("run_id", "")
            else:
                page.after = None
    except QueryTimeoutError:
        page.is_complete = False
    if page.abandoned_before_ns is None and any(row.get("status") is None for row in page.rows):
        page.abandoned_before_ns = _read_boundary(store)
    return page


def _read_boundary(store: Store) -> int | None:
    with open_snapshot(store) as snapshot:
        return abandoned_before(read_completeness(snapshot, (PROJECTION,)).at_ns)


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
