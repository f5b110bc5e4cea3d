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

_MINUTE_NS = 60 * 10**9
_DAY_NS = 1_440 * _MINUTE_NS
_SIZE = re.compile(r"(\d+)-(\d*)")
_WINDOW = re.compile(r"utc(\d\d)(\d\d)-(\d\d)(\d\d)")
_FLAGS = frozenset({"searched", "audio", "mixed", "impossible", "unmeasured"})
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


class Sum(NamedTuple):
    """What the calls of a row cost together; `None`: none of them has a price."""

    cost_picodollars: int | None


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


def price_sum(
    table: PriceTable,
    provider: str,
    model: str,
    price_class: str,
    calls: int,
    tokens: Mapping[str, int],
    from_ns: int,
    to_ns: int,
) -> Sum | None:
    """Prices calls that were added up.

    Args:
        table: the prices.
        provider: of all of them, '' where it is unknown.
        model: likewise.
        price_class: under which they are stored.
        calls: how many of them reported their usage.
        tokens: their sums, by `rollups.TOKEN_CLASSES`.
        from_ns: when the first may have been made.
        to_ns: before when the last was.

    Returns:
        `None` where it cannot be told exactly: a price changes within the time, the size bucket or the window of the
        row, or some of the calls have a price and others have none.
    """
    stored = read_class(price_class)
    if calls == 0 or stored.marks & {"impossible", "unmeasured"}:
        return Sum(None)
    found: set[Rates | None] = set()
    for day in range(from_ns // _DAY_NS, (to_ns - 1) // _DAY_NS + 1):
        plan = table.plan(provider or None, model or None, stored.tier or None, day)
        midnight = day * _DAY_NS
        found.update(_rates_met(table, plan, stored, max(from_ns - midnight, 0), min(to_ns - midnight, _DAY_NS)))
        if len(found) > 1:
            return None
    if not found:
        return None
    (rates,) = found
    return Sum(None) if rates is None else _add_up(rates, stored.marks, calls, tokens)


def _rates_met(table: PriceTable, plan: Plan, stored: StoredClass, from_ns: int, to_ns: int) -> Iterator[Rates | None]:
    """The rates of every cell of a day's plan that calls of the row may lie in."""
    edges = [0, *plan.window_starts_ns, _DAY_NS]
    bounds = [-1, *table.sizes]
    for number, cells in enumerate(plan.cells):
        if not any(
            max(edges[number], first, from_ns) < min(edges[number + 1], last, to_ns)
            for first, last in _stretches(stored.window)
        ):
            continue
        for place, (_, rates) in enumerate(cells):
            lowest = bounds[place] + 1
            highest = table.sizes[place] if place < len(table.sizes) else None
            if (stored.up_to is None or lowest <= stored.up_to) and (highest is None or highest > stored.more_than):
                yield rates


def _stretches(window: tuple[int, int] | None) -> list[tuple[int, int]]:
    """A window of the day, two pieces where it goes over midnight."""
    if window is None:
        return [(0, _DAY_NS)]
    first, last = window[0] * _MINUTE_NS, window[1] * _MINUTE_NS
    return [(first, last)] if first < last else [(first, _DAY_NS), (0, last)]


def _add_up(rates: Rates, marks: frozenset[str], calls: int, tokens: Mapping[str, int]) -> Sum | None:
    is_priced = _has_price(rates, marks, tokens, calls == 1)
    if not is_priced:
        return None if is_priced is None else Sum(None)
    return Sum(
        rates.request * calls
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
