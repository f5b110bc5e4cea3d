"""
A batch: what one set of projections in lockstep applies of one partition, sorted by kind.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cached_property
from operator import attrgetter

from runtap_consumers.pricing import PriceTable
from runtap_consumers.rollups import MINUTE_NS, SKEW_AHEAD_NS, SKEW_BEHIND_NS, TOKEN_CLASSES
from runtap_schemas import EmitterReported, RunEnded, RunNoted, RunStarted, SessionEvent

PICODOLLARS = 10**12
# No call costs that much: what comes to more is a mistake in its usage, and would end in sums beyond 64 bits.
MAX_CALL_PICODOLLARS = 10_000 * PICODOLLARS

Timed = tuple[RunEnded, int]

# A usage's figures in the order of `rollups.TOKEN_CLASSES`, `None` where unknown.
tokens_of = attrgetter(*TOKEN_CLASSES)


@dataclass
class Call:
    """
    An ended model run and what it cost. `measures` are in the order of `rollups.COST_MEASURES`.
    """

    event: RunEnded
    at_ns: int
    provider: str
    model: str
    price_set: str
    price_class: str
    measures: list[int]
    cost_picodollars: int | None


@dataclass
class Batch:
    """
    The new events of a batch.

    An event comes with its instant: the capture time, or the log time where that was not believed. `ended` is capped
    (see `dimensions`), `ended_uncapped` the same events as they came. `skipped_types` are events of types unknown
    here, `skewed_services` the services of events whose time was not believed.
    """

    prices: PriceTable
    log_time_ns: int = 0
    ended: list[Timed] = field(default_factory=list)
    ended_uncapped: list[Timed] = field(default_factory=list)
    started: list[tuple[RunStarted, int]] = field(default_factory=list)
    noted: list[tuple[RunNoted, int]] = field(default_factory=list)
    sessions: list[tuple[SessionEvent, int]] = field(default_factory=list)
    reports: list[tuple[EmitterReported, int]] = field(default_factory=list)
    skipped_types: list[str] = field(default_factory=list)
    skewed_services: list[str] = field(default_factory=list)

    @cached_property
    def calls(self) -> list[Call | None]:
        """
        Priced once for all projections; parallel to `ended`, `None` where the run is no model call.
        """
        return [
            price_call(event, capped, at_ns, self.prices) if event.run_type == "llm" else None
            for (event, at_ns), (capped, _) in zip(self.ended_uncapped, self.ended, strict=True)
        ]


def believed_time(at_ns: int, log_time_ns: int) -> tuple[int, bool]:
    """
    The instant that decides an event's bucket: its own, unless that is over 60 s after or 8 days before log time.

    Returns:
        The instant, and whether the event's own was not believed.
    """
    if at_ns - log_time_ns > SKEW_AHEAD_NS or log_time_ns - at_ns > SKEW_BEHIND_NS:
        return log_time_ns, True
    return at_ns, False


def minute_of(at_ns: int) -> int:
    """
    Start of the minute that holds an instant.
    """
    return at_ns - at_ns % MINUTE_NS


def price_call(event: RunEnded, capped: RunEnded, at_ns: int, prices: PriceTable) -> Call:
    """
    What a model run used and cost. Unknown is not zero: without usage or price the cost is `None`, and counted.

    Args:
        event: the run as it came, which is priced.
        capped: the run with the names under which it counts.
        at_ns: its instant.
        prices: the price table.
    """
    usage, price_set, price_class = event.usage, prices.price_set, "standard"
    cost: int | None = None
    cached = event.usage_source == "cache"
    if cached:
        price_class, cost = "cached", 0
    elif event.reported_cost_usd is not None:
        # What the provider says it billed beats any table.
        price_set, price_class = "provider", "reported"
        cost = int((Decimal(event.reported_cost_usd) * PICODOLLARS).to_integral_value(ROUND_HALF_EVEN))
    elif usage is not None:
        model = event.model or event.request_model
        price_class, cost = prices.price(event.provider, model, usage, at_ns, event.service_tier)
    if cost is not None and cost > MAX_CALL_PICODOLLARS:
        cost = None
    metered = usage is not None and usage.input_tokens is not None and usage.output_tokens is not None
    measures = [
        1,
        int(cost is not None),
        int(cost is None and metered),
        int(cost is None and not metered and event.status == "ok"),
        int(cached),
    ]
    if usage is None or cached:
        measures.extend([0] * len(TOKEN_CLASSES))
    else:
        measures.extend([tokens or 0 for tokens in tokens_of(usage)])
    measures.append(cost or 0)
    capped_model = capped.model or capped.request_model or ""
    return Call(capped, at_ns, capped.provider or "", capped_model, price_set, price_class, measures, cost)
