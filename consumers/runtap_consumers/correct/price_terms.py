"""Pricing what is stored: sums of calls, by what their price class still tells of them.

A row holds the sum of calls of one provider, model and price class. It has an exact price where one set of rates holds
for everything that the row may contain, and every call of it has a price or none has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from runtap_consumers.pricing.rates import Rates
from runtap_consumers.pricing.table import UNLABELLED_SIZE_TOKENS, Plan, PriceTable
from runtap_consumers.projections.batch import MAX_CALL_PICODOLLARS
from runtap_consumers.projections.rollups import OTHER
from runtap_consumers.units import DAY_NS, MINUTE_NS

_SIZE = re.compile(r"(\d+)-(\d*)")
_WINDOW = re.compile(r"utc(\d\d)(\d\d)-(\d\d)(\d\d)")
_FLAGS = frozenset({"searched", "audio", "mixed", "impossible", "unmeasured", "requested", "preview"})
# Those with which calls are priced (`PriceTable.price`).
TOLD = frozenset({"requested", "preview"})
_CACHE_CLASSES = ("cache_read", "cache_write_5m", "cache_write_1h")


class StoredClass(NamedTuple):
    """What a price class says: service tier, input tokens (more than, up to: `None` without end), minutes of the day
    (UTC; `None`: all), and marks of what the calls used.
    """

    tier: str
    more_than: int
    up_to: int | None
    window: tuple[int, int] | None
    marks: frozenset[str]


class Terms(NamedTuple):
    """At what every call of a row is priced; `None`: none of them has a price."""

    rates: Rates | None


@lru_cache(4_096)
def read_class(price_class: str) -> StoredClass:
    """Takes a price class apart (`PriceTable.price` says how it is made)."""
    tier: list[str] = []
    more_than = 0
    up_to: int | None = UNLABELLED_SIZE_TOKENS
    window = None
    marks = set()
    for part in price_class.split("/") if price_class != "standard" else ():
        if size := _SIZE.fullmatch(part):
            more_than, up_to = int(size[1]), int(size[2]) if size[2] else None
        elif clock := _WINDOW.fullmatch(part):
            hour, minute, end_hour, end_minute = map(int, clock.groups())
            window = (hour * 60 + minute, end_hour * 60 + end_minute)
        elif part in _FLAGS:
            marks.add(part)
        else:
            tier.append(part)
    return StoredClass("/".join(tier), more_than, up_to, window, frozenset(marks))


def metered_calls(measures: Mapping[str, int]) -> int:
    """The calls of a row that reported their usage: those that prices are about."""
    return measures["priced_calls"] + measures["unpriced_calls"]


def find_terms(
    table: PriceTable, key: Mapping[str, str], measures: Mapping[str, int], span: tuple[int, int]
) -> Terms | None:
    """Finds out at what calls are priced that were added up, all of them made within the span.

    `None` where it cannot be told exactly: a price changes within the span, or the row's sizes or hours; some of the
    calls have a price and others have none; the model is one beyond the cap; the span is empty.
    """
    (from_ns, to_ns), calls, stored = span, metered_calls(measures), read_class(key["price_class"])
    told = stored.marks & TOLD
    if told and not table.is_priceable(key["provider"] or None, key["model"] or None, told):
        return Terms(None)
    if OTHER in (key["provider"], key["model"]) or from_ns >= to_ns:
        return None
    if calls == 0 or stored.marks & {"impossible", "unmeasured"}:
        return Terms(None)
    found: set[Rates | None] = set()
    for day in range(from_ns // DAY_NS, (to_ns - 1) // DAY_NS + 1):
        plan = table.plan(key["provider"] or None, key["model"] or None, stored.tier or None, day)
        midnight = day * DAY_NS
        found.update(_rates_met(table, plan, stored, max(from_ns - midnight, 0), min(to_ns - midnight, DAY_NS)))
        if len(found) > 1:
            return None
    if not found:
        return None
    (rates,) = found
    is_priced = rates is not None and _has_price(rates, stored.marks, measures, calls == 1)
    if rates is None or not is_priced:
        return None if is_priced is None else Terms(None)
    cost = cost_of(rates, measures)
    if cost > MAX_CALL_PICODOLLARS:
        # A call beyond `MAX_CALL_PICODOLLARS` has no price; of several, their sum does not say which is.
        if calls == 1:
            return Terms(None)
        has_both = measures["priced_calls"] and measures["unpriced_calls"] and not stored.marks
        if has_both or cost > MAX_CALL_PICODOLLARS * calls:
            return None
    return Terms(rates)


def cost_of(rates: Rates, tokens: Mapping[str, int]) -> int:
    """What the calls of a row cost together at these rates, picodollars."""
    return (
        rates.request * metered_calls(tokens)
        + tokens["input_tokens"] * rates.input
        + tokens["output_tokens"] * rates.output
        + tokens["cache_read_tokens"] * rates.cache_read
        + tokens["cache_write_5m_tokens"] * rates.cache_write_5m
        + tokens["cache_write_1h_tokens"] * rates.cache_write_1h
        + tokens["input_audio_tokens"] * (rates.input_audio or 0)
        + tokens["input_image_tokens"] * rates.input_image
        + tokens["reasoning_tokens"] * rates.reasoning
        + tokens["output_audio_tokens"] * (rates.output_audio or 0)
        + tokens["web_searches"] * (rates.web_search or 0)
    )


def _rates_met(table: PriceTable, plan: Plan, stored: StoredClass, from_ns: int, to_ns: int) -> Iterator[Rates | None]:
    """The rates of every cell of a day's plan that calls of the row may lie in."""
    edges = [0, *plan.window_starts_ns, DAY_NS]
    bounds = [-1, *table.sizes]
    for number, cells in enumerate(plan.cells):
        if not any(
            max(edges[number], first, from_ns) < min(edges[number + 1], last, to_ns)
            for first, last in _stretches(stored.window)
        ):
            continue
        for index, (_, rates) in enumerate(cells):
            lowest = bounds[index] + 1
            highest = table.sizes[index] if index < len(table.sizes) else None
            if (stored.up_to is None or lowest <= stored.up_to) and (highest is None or highest > stored.more_than):
                yield rates


def _stretches(window: tuple[int, int] | None) -> list[tuple[int, int]]:
    """A window of the day, two pieces where it goes over midnight."""
    if window is None:
        return [(0, DAY_NS)]
    first, last = window[0] * MINUTE_NS, window[1] * MINUTE_NS
    return [(first, last)] if first < last else [(first, DAY_NS), (0, last)]


def _has_price(rates: Rates, marks: frozenset[str], tokens: Mapping[str, int], is_single: bool) -> bool | None:
    """Whether every call of a row has a price (`True`), or none (`False`); `None`: it cannot be told."""
    if "searched" in marks and rates.web_search is None:
        return False
    unpriced_audio = [
        tokens[f"{name}_tokens"] > 0 for name in ("input_audio", "output_audio") if getattr(rates, name) is None
    ]
    if any(unpriced_audio):
        # Each call has audio of one kind or the other: of both only where the other kind is missing in all.
        other = tokens["output_audio_tokens"] if rates.input_audio is None else tokens["input_audio_tokens"]
        return False if is_single or len(unpriced_audio) == 2 or other == 0 else None
    if "mixed" not in marks:
        return True
    # Every call has cached tokens and audio or image: it has no price where both are priced apart.
    cache = [getattr(rates, name) != 0 for name in _CACHE_CLASSES if tokens[f"{name}_tokens"]]
    modal = [bool(getattr(rates, name)) for name in ("input_audio", "input_image") if tokens[f"{name}_tokens"]]
    if not any(cache) or not any(modal):
        return True
    return False if is_single or (all(cache) and all(modal)) else None
