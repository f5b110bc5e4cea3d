"""Why the costs of a range differ from those of a range before: the difference, split exactly.

What a model's calls cost at list price is a product. Its factors are replaced one at a time, in this order; a part is
the difference that its factor makes, those before it being new and those after it old:

    volume    the calls of all models
    mix       the share of them that is this model's; all of a model that only one range has
    tokens    input and output a call, and how much of them is audio, image or reasoning
    cached    how much of the input was read from a cache, and written to it
    price     the mean price of a call and of a token of each kind: other prices, tiers, sizes

All of it in fractions, a model's parts rounded once, to picodollars by largest remainder, so that they add up. What
list prices do not explain is a part of its own: providers' bills, web searches, prices that are not loaded any more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from math import floor
from typing import Any, NamedTuple, TypedDict, cast
from zoneinfo import ZoneInfo

from runtap_consumers.correct.price_terms import cost_of, find_terms, metered_calls
from runtap_consumers.errors import InputError
from runtap_consumers.figures.report import read_completeness
from runtap_consumers.figures.shapes import Dollars, OfRange, Range
from runtap_consumers.instants import dollars, format_instant
from runtap_consumers.pricing import PriceTable
from runtap_consumers.projections.rollups import SKEW_AHEAD_NS
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.costs import read_cuts
from runtap_consumers.store.read.ranges import DEFAULT_NS, TimeRange, snap_range
from runtap_consumers.store.read.snapshot import Snapshot, open_snapshot
from runtap_consumers.units import DAY_NS, HOUR_NS


class Parts(TypedDict):
    """The difference, split: the module's text says into what."""

    volume: Dollars
    mix: Dollars
    tokens: Dollars
    cached: Dollars
    price: Dollars
    other: Dollars


class Change(TypedDict):
    """What was spent in both ranges. `listed_calls`: those that list prices explain."""

    cost_before_usd: Dollars
    cost_usd: Dollars
    difference_usd: Dollars
    parts_usd: Parts
    listed_calls_before: int
    listed_calls: int


class ModelChange(Change):
    """Of one model."""

    provider: str | None
    model: str | None


class CostChanges(OfRange, Change):
    """Of all models. Those with the largest difference come first."""

    before: Range
    timezone: str
    models: list[ModelChange]


PARTS = tuple(Parts.__annotations__)
_CACHED = ("cache_read", "cache_write_5m", "cache_write_1h")
# Kinds of tokens, and of what they are a share. A kind's price is what it adds to that of the whole.
_SHARE_OF = {
    **dict.fromkeys(("input_audio", "input_image", *_CACHED), "input"),
    **dict.fromkeys(("reasoning", "output_audio"), "output"),
}
_KINDS = ("input", "output", *_SHARE_OF)
_NOTHING = Fraction(0)


@dataclass
class Used:
    """What a model's calls of a range used, and what it cost at list price, picodollars: by kind of token, and by call
    as `request`. `other`: what list prices do not explain.
    """

    calls: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*_KINDS, "request"), 0))
    costs: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*_KINDS, "request"), 0))
    other: int = 0

    @property
    def cost(self) -> int:
        """All of it, picodollars."""
        return sum(self.costs.values()) + self.other


class _Factors(NamedTuple):
    """What a model's costs are the product of. `shares`: of the whole they belong to, or a call's tokens."""

    share_of_calls: Fraction
    tokens: Mapping[str, Fraction]
    cached: Mapping[str, Fraction]
    prices: Mapping[str, Fraction | None]


def split(before: Mapping[Any, Used], now: Mapping[Any, Used]) -> dict[Any, dict[str, int]]:
    """Splits the difference of costs, by model, into `PARTS`, picodollars; a model's parts add up to its difference."""
    calls_before, calls_now = (sum(used.calls for used in side.values()) for side in (before, now))
    found = {}
    for model in {**before, **now}:
        old, new = before.get(model, Used()), now.get(model, Used())
        parts = _split_model(_factors(old, calls_before), _factors(new, calls_now), calls_before, calls_now)
        found[model] = {**_rounded(dict(zip(PARTS, parts, strict=False))), "other": new.other - old.other}
    return found


def _split_model(old: _Factors, new: _Factors, calls_before: int, calls_now: int) -> list[Fraction]:
    # Where one side has nothing to say, the other's factor holds for both.
    if not old.share_of_calls:
        old = new._replace(share_of_calls=_NOTHING)
    elif not new.share_of_calls:
        new = old._replace(share_of_calls=_NOTHING)
    old = old._replace(prices={kind: _known(price, new.prices[kind]) for kind, price in old.prices.items()})
    new = new._replace(prices={kind: _known(price, old.prices[kind]) for kind, price in new.prices.items()})
    steps, factors = [_cost(calls_before, old), _cost(calls_now, old)], old
    for name in _Factors._fields:
        replaced: dict[str, Any] = {name: getattr(new, name)}
        factors = factors._replace(**replaced)
        steps.append(_cost(calls_now, factors))
    return [later - earlier for earlier, later in pairwise(steps)]


def _known(price: Fraction | None, others: Fraction | None) -> Fraction:
    return price if price is not None else others if others is not None else _NOTHING


def _factors(used: Used, calls_of_all: int) -> _Factors:
    def share(kind: str) -> Fraction:
        whole = used.counts[_SHARE_OF[kind]] if kind in _SHARE_OF else used.calls
        return Fraction(used.counts[kind], whole) if whole else _NOTHING

    def price(kind: str) -> Fraction | None:
        return Fraction(used.costs[kind], used.counts[kind]) if used.counts[kind] else None

    return _Factors(
        Fraction(used.calls, calls_of_all) if used.calls else _NOTHING,
        {kind: share(kind) for kind in _KINDS if kind not in _CACHED},
        {kind: share(kind) for kind in _CACHED},
        {kind: price(kind) for kind in used.costs},
    )


def _cost(calls_of_all: int, factors: _Factors) -> Fraction:
    a_call = factors.prices["request"] or _NOTHING
    for kind, share in {**factors.tokens, **factors.cached}.items():
        count = share * factors.tokens[_SHARE_OF[kind]] if kind in _SHARE_OF else share
        a_call += count * (factors.prices[kind] or _NOTHING)
    return calls_of_all * factors.share_of_calls * a_call


def _rounded(parts: Mapping[str, Fraction]) -> dict[str, int]:
    """Whole numbers that add up to what the parts do, by largest remainder."""
    whole = {name: floor(part) for name, part in parts.items()}
    missing = int(sum(parts.values(), _NOTHING)) - sum(whole.values())
    for name in sorted(parts, key=lambda name: whole[name] - parts[name])[:missing]:
        whole[name] += 1
    return whole


def read_used(snapshot: Snapshot, prices: PriceTable, asked: TimeRange, service: str | None) -> dict[Any, Used]:
    """What each (provider, model) used in a range, and what that cost."""
    found: dict[Any, Used] = defaultdict(Used)
    where = {} if service is None else {"service": service}
    for segment in asked.segments:
        span_ns = DAY_NS if segment.grain == "day" else HOUR_NS
        for cut in read_cuts(snapshot, (segment,), ("price_set",), where):
            used, counts = found[cut.provider, cut.model], cut.sums.counts
            key = {"provider": cut.provider, "model": cut.model, "price_class": cut.price_class}
            terms = None
            if cut.price_class != "reported":
                terms = find_terms(prices, key, counts, (cut.bucket_ns, cut.bucket_ns + span_ns))
            rates = None if terms is None else terms.rates
            if rates is None or cost_of(rates, counts) != cut.sums.cost_picodollars:
                used.other += cut.sums.cost_picodollars
                continue
            used.calls += metered_calls(counts)
            used.other += counts["web_searches"] * (rates.web_search or 0)
            for kind in used.counts:
                count = metered_calls(counts) if kind == "request" else counts[f"{kind}_tokens"]
                used.counts[kind] += count
                used.costs[kind] += count * (getattr(rates, kind) or 0)
    return dict(found)


def build_changes(
    store: Store,
    prices: PriceTable,
    now_range: tuple[int | None, int | None],
    before_range: tuple[int | None, int | None],
    service: str | None,
    zone: ZoneInfo,
    now_ns: int,
) -> CostChanges:
    """Why costs of a range differ from those of another, by model, the largest difference first.

    Args:
        store: where from.
        prices: at which costs are explained.
        now_range: begin and end; `None`: the last 24 hours, to now.
        before_range: what it is compared with; `None`: the range of the same length that ends where it begins.
        service: only this one.
        zone: of the times in it.
        now_ns: the present.

    Raises:
        InputError: a range ends before it begins.
    """
    since_ns, until_ns = now_range
    end_ns = now_ns if until_ns is None else until_ns
    begin_ns = end_ns - DEFAULT_NS if since_ns is None else since_ns
    with open_snapshot(store) as snapshot:
        now = _range(snapshot, begin_ns, end_ns if until_ns is not None else end_ns + SKEW_AHEAD_NS, store.zone)
        before_to_ns = now.from_ns if before_range[1] is None else before_range[1]
        before_from_ns = before_to_ns - (end_ns - begin_ns) if before_range[0] is None else before_range[0]
        before = _range(snapshot, before_from_ns, before_to_ns, store.zone)
        used_before, used_now = (read_used(snapshot, prices, asked, service) for asked in (before, now))
        complete = read_completeness(snapshot, ("cost",))
    parts = split(used_before, used_now)
    models = sorted(parts, key=lambda model: (-abs(sum(parts[model].values())), model))
    total = {part: sum(each[part] for each in parts.values()) for part in PARTS}
    return {
        "generated_at": format_instant(now_ns, zone),
        "range": _describe_range(now, zone),
        "before": _describe_range(before, zone),
        "complete_to": format_instant(complete.at_ns, zone),
        "timezone": store.zone.key,
        **_describe(list(used_before.values()), list(used_now.values()), total),
        "models": [
            {
                "provider": provider or None,
                "model": model or None,
                **_describe(
                    [used_before.get((provider, model), Used())],
                    [used_now.get((provider, model), Used())],
                    parts[provider, model],
                ),
            }
            for provider, model in models
        ],
    }


def _range(snapshot: Snapshot, from_ns: int, to_ns: int, zone: ZoneInfo) -> TimeRange:
    if from_ns >= to_ns:
        raise InputError(
            f"the range from {format_instant(from_ns, zone)} to {format_instant(to_ns, zone)} has no length"
        )
    return snap_range(from_ns, to_ns, snapshot.newest_log_time_ns, zone)


def _describe_range(asked: TimeRange, zone: ZoneInfo) -> Range:
    return {"from": format_instant(asked.from_ns, zone), "to": format_instant(asked.to_ns, zone)}


def _describe(before: Sequence[Used], now: Sequence[Used], parts: Mapping[str, int]) -> Change:
    of_before, of_now = sum(used.cost for used in before), sum(used.cost for used in now)
    return {
        "cost_before_usd": dollars(of_before),
        "cost_usd": dollars(of_now),
        "difference_usd": dollars(of_now - of_before),
        "listed_calls_before": sum(used.calls for used in before),
        "listed_calls": sum(used.calls for used in now),
        "parts_usd": cast(Parts, {part: dollars(amount) for part, amount in parts.items()}),
    }
