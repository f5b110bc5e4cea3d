"""Searching single runs page by page. Apart from how they look, which the help of a command loads."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from runtap_consumers.errors import QueryTimeoutError
from runtap_consumers.figures.report import read_completeness
from runtap_consumers.figures.runs import PROJECTION, abandoned_before
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.run_filter import RunFilter
from runtap_consumers.store.read.runs import search_runs
from runtap_consumers.store.read.snapshot import open_snapshot


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
