"""Costs by attribute: the user, or a metadata key of `RUNTAP_COST_BY` (`runtap report --by`)."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

from runtap_consumers.errors import InputError
from runtap_consumers.figures.report import read_completeness
from runtap_consumers.instants import day_start_ns, dollars, format_instant, hour_start_ns
from runtap_consumers.projections.rollups import COST_BY_ATTRIBUTE, SKEW_AHEAD_NS
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.figures import read_costs
from runtap_consumers.store.read.ranges import DEFAULT_NS, Segment, TimeRange
from runtap_consumers.store.read.snapshot import open_snapshot
from runtap_consumers.store.read.unmatched import AttributeRow, read_attribute_costs, read_attributes
from runtap_consumers.units import HOUR_NS

USER = "user"
_COUNTS = ("calls", "priced_calls", "unpriced_calls", "unmetered_calls", "input_tokens", "output_tokens")


def build_attribution(
    store: Store,
    attribute: str,
    configured: tuple[str, ...],
    since: int | None,
    until: int | None,
    service: str | None,
    zone: ZoneInfo,
    now_ns: int,
) -> dict[str, Any]:
    """Costs of a range by the values of an attribute; the value null is for calls without it.

    Args:
        store: where from.
        attribute: `user` or a metadata key, also as `metadata.key`.
        configured: the metadata keys that costs are attributed to now.
        since: begin, Unix nanoseconds; `None`: 24 hours before the end. It snaps outward to hours, or to days where
            these are no longer kept; what is before the oldest day that is kept is left out.
        until: end, likewise; `None`: now.
        service: only this one; `None`: all.
        zone: of the times in it.
        now_ns: the present.

    Raises:
        InputError: costs have never been attributed to it.
    """
    name = attribute.removeprefix("metadata.")
    end_ns = now_ns + SKEW_AHEAD_NS if until is None else until
    begin_ns = (now_ns if until is None else until) - DEFAULT_NS if since is None else since
    with open_snapshot(store) as snapshot:
        known = {USER, *configured, *read_attributes(snapshot)}
        if name not in known:
            raise InputError(
                f"costs are not attributed to {attribute!r}: expected one of {', '.join(sorted(known))}; "
                "RUNTAP_COST_BY names up to three metadata keys for workers"
            )
        segment = _snap(begin_ns, end_ns, snapshot.newest_log_time_ns, store.zone)
        values = read_attribute_costs(snapshot, name, segment, service)
        whole = read_costs(snapshot, TimeRange(segment.from_ns, segment.to_ns, (segment,)), service)
        complete = read_completeness(snapshot, ("cost",))
    total = AttributeRow(
        "",
        {count: sum(row.counts[count] for row in whole) for count in _COUNTS},
        sum(row.cost_picodollars for row in whole),
    )
    without_value = AttributeRow(
        "",
        {count: total.counts[count] - sum(row.counts[count] for row in values) for count in _COUNTS},
        total.cost_picodollars - sum(row.cost_picodollars for row in values),
    )
    shown = sorted(values, key=lambda row: (-row.cost_picodollars, -row.counts["calls"], row.value))
    if without_value.counts["calls"]:
        shown.append(without_value)
    return {
        "generated_at": format_instant(now_ns, zone),
        "range": {"from": format_instant(segment.from_ns, zone), "to": format_instant(segment.to_ns, zone)},
        "complete_to": format_instant(complete.at_ns, zone),
        "attribute": name,
        **_describe(total),
        "values": [{"value": row.value or None, **_describe(row)} for row in shown],
    }


def _snap(from_ns: int, to_ns: int, newest_log_time_ns: int, zone: ZoneInfo) -> Segment:
    hours_ns, days_ns = (COST_BY_ATTRIBUTE.grains[grain] or 0 for grain in ("hour", "day"))
    if from_ns >= newest_log_time_ns - hours_ns + HOUR_NS:
        return Segment("hour", hour_start_ns(from_ns, zone), hour_start_ns(to_ns - 1, zone, hours_later=1))
    # Costs without attributes are kept for longer: without this, all of them would be shown as costs without a value.
    kept_ns = day_start_ns(max(newest_log_time_ns - days_ns, 0), zone, days_later=1)
    first, last = max(day_start_ns(from_ns, zone), kept_ns), day_start_ns(to_ns - 1, zone, days_later=1)
    return Segment("day", min(first, last), last)


def _describe(row: AttributeRow) -> dict[str, Any]:
    is_unknown = row.counts["calls"] and not row.counts["priced_calls"]
    return {**row.counts, "cost_usd": None if is_unknown else dollars(row.cost_picodollars)}
