"""Figures in words, the same on every face. A figure's unit, the end of its name in JSON, says how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

UNKNOWN = "–"
RUN_TYPES = ("llm", "chain", "tool", "retriever")
# What may have become of a run.
ENDED_STATUSES = ("ok", "error", "interrupted", "cancelled")
STATUSES = (*ENDED_STATUSES, "open", "abandoned")
# What an error is told by.
ERROR_FACTS = ("category", "status_code", "code", "raised_at", "message")

Row = Mapping[str, Any]


def show(name: str, value: Any) -> str | None:
    """A figure as people read it: `cost_usd`, `duration_seconds`, `started_at`; `None` is what is not known."""
    form = _FORMATS.get(name.rpartition("_")[2])
    if form is not None and value is not None:
        return form(value)
    return f"{value:,}" if isinstance(value, int) else value


def duration(seconds: float) -> str:
    """A duration to three digits or so."""
    if seconds < 1:
        return f"{seconds * 1_000:.3g} ms" if seconds < 0.0995 else f"{seconds * 1_000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} m" if hours else f"{minutes} m {rest:02} s"


def money(value: str | None) -> str:
    """An exact decimal of dollars, as a page takes it."""
    if value is None:
        return UNKNOWN
    amount = abs(Decimal(value))
    text = f"${amount:,.2f}" if amount >= 100 or amount == 0 else f"${amount:,.6f}"
    return f"-{text}" if value.startswith("-") else text


_FORMATS: dict[str, Callable[[Any], str]] = {
    "seconds": duration,
    "usd": money,
    # 2025-06-30T14:00:00.123456+02:00: what a line of a table takes of it.
    **dict.fromkeys(("at", "seen"), lambda value: f"{value[5:10]} {value[11:19]}"),
    **dict.fromkeys(("rate", "share"), "{:.1%}".format),
    "second": "{:.1f}".format,
    "ids": ", ".join,
}


def error_facts(category: str | None, status_code: int | None, code: str | None) -> str:
    """What kind of error it is: `rate_limit, HTTP 429, rate_limit_exceeded`."""
    return ", ".join(fact for fact in (category, status_code and f"HTTP {status_code}", code) if fact)


def error_text(
    category: str | None, status_code: int | None, code: str | None, raised_at: str | None, message: str | None
) -> str:
    """An error of `ERROR_FACTS`: its message if the service sent one, else its kind; and where it was raised."""
    said = message or error_facts(category, status_code, code)
    return f"{said} (at {raised_at})" if raised_at else said


def loss_text(row: Row) -> str:
    """Why events of a row of the ledger were not applied."""
    reasons = [f"dropped: {reason} {count:,}" for reason, count in row["dropped"].items()]
    reasons += [f"lost: {reason} {count:,}" for reason, count in row["lost_by_reason"].items()]
    return ", ".join(reasons)


def incident_text(incident: Row) -> str:
    """What happened to a partition's log."""
    first, last = incident["first_offset"], incident["last_offset"]
    if incident["kind"] == "retention":
        return f"retention deleted offsets {first} to {last} ({last - first + 1:,}) before they were read"
    if incident["kind"] == "skipped":
        return f"somebody skipped the record at offset {first}"
    if incident["kind"] == "gone":
        return f"the topic has no such partition any more; it was read up to offset {last}"
    return f"the topic was made again; the log before it was read up to offset {last}"
