"""A batch: what one set of projections in lockstep applies of one partition, sorted by kind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cached_property
from operator import add, attrgetter
from typing import Any, NamedTuple, Protocol

from msgspec import Struct

from runtap_consumers.projections.rollups import SKEW_AHEAD_NS, SKEW_BEHIND_NS, TOKEN_CLASSES
from runtap_consumers.units import PICODOLLARS, minute_of
from runtap_schemas import (
    EmitterReported,
    LaneAbandoned,
    RunEnded,
    RunEvent,
    RunNoted,
    RunScored,
    RunStarted,
    SessionEvent,
    Usage,
)

# No call costs that much: more is a mistake in its usage, and would take sums beyond 64 bits.
MAX_CALL_PICODOLLARS = 10_000 * PICODOLLARS

Timed = tuple[RunEnded, int]
# The names that a run counts under: runs that agree in all of them are of one kind.
KIND = ("service", "environment", "run_type", "name", "provider", "request_model", "model")
Kind = tuple[str, str, str, str, str | None, str | None, str | None]
# Of `rollups.COST_KEY`.
CostKey = tuple[str, str, str, str, str, str]

_kind_of = attrgetter(*KIND)
_NO_TOKENS = [0] * len(TOKEN_CLASSES)


class Priced(Struct, frozen=True, gc=False):
    """The cost of one call (`None`: no price known), and the class of price it belongs to.

    `price_class` is at most 64 characters: `standard`, or of these what applies, joined by `/`: the service tier; the
    size bucket as `more-than`-`up-to` input tokens (`200000-256000`, `524288-`; up to 32,000 goes unlabelled); the
    time-of-day window (`utc0100-0400`); `searched` with web searches; `audio` with audio tokens; `mixed` with audio or
    image beside cached tokens; `impossible` where parts exceed their total and `unmeasured` without a total. Calls of
    one provider, model, UTC day and class have the same prices, so where each has a cost, the cost of their summed
    usage is the sum of theirs.
    """

    price_class: str
    cost_picodollars: int | None


class Prices(Protocol):
    """What calls cost. `price_set` names where the prices come from, with version and hash."""

    @property
    def price_set(self) -> str: ...

    def seller_at(self, provider: str | None, host: str) -> str | None:
        """Who is paid for a call of a provider's client at a host."""

    def price(
        self,
        provider: str | None,
        model: str | None,
        usage: Usage,
        at_ns: int,
        service_tier: str | None = None,
        *,
        marks: Collection[str] = (),
    ) -> Priced:
        """Prices one call."""


class CostKeyNumbers(Protocol):
    """The numbers of cost keys, the same for all workers and for ever."""

    def numbers(self, keys: set[CostKey]) -> Mapping[CostKey, int]:
        """A number for each key, and perhaps of others."""


class Report(NamedTuple):
    """What an emitter said of itself, under which number of its lane and when. Of one that came again, `is_new` is
    false.
    """

    emitter: str
    number: int
    event: EmitterReported
    log_time_ns: int
    is_new: bool = True


class Call(Struct, gc=False):
    """An ended model run and what it cost. `measures` are in the order of `rollups.COST_MEASURES`."""

    event: RunEnded
    at_ns: int
    provider: str
    model: str
    price_set: str
    price_class: str
    measures: list[int]
    cost_picodollars: int | None


class PricedCalls(NamedTuple):
    """The calls of a minute that are kept under one cost key, which has a number."""

    minute_ns: int
    key: CostKey
    number: int
    calls: list[Call]


@dataclass
class Batch:
    """The new events of a batch.

    An event comes with its instant: the capture time, or the log time where that was not believed. `ended` is capped
    (see `dimensions`), `kinds` the same by kind, `ended_uncapped` the same events as they came. `newcomers` are events
    of emitters met for the first time, `strays` counts what belongs to no lane. `skipped_types` are events of types
    unknown here, `skewed_services` the services of events whose time was not believed.
    """

    prices: Prices
    cost_keys: CostKeyNumbers
    log_time_ns: int = 0
    ended: list[Timed] = field(default_factory=list)
    kinds: dict[Kind, list[Timed]] = field(default_factory=dict)
    ended_uncapped: list[Timed] = field(default_factory=list)
    started: list[tuple[RunStarted, int]] = field(default_factory=list)
    noted: list[tuple[RunNoted, int]] = field(default_factory=list)
    sessions: list[tuple[SessionEvent, int]] = field(default_factory=list)
    scored: list[tuple[RunScored, int]] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    abandoned: list[tuple[LaneAbandoned, int]] = field(default_factory=list)
    newcomers: list[tuple[str, Any, int]] = field(default_factory=list)
    strays: Counter[str] = field(default_factory=Counter)
    skipped_types: list[str] = field(default_factory=list)
    skewed_services: list[str] = field(default_factory=list)

    def add_ended(self, event: RunEnded, log_time_ns: int) -> None:
        """Adds an ended run; one of a model is its seller's, whatever the client's name."""
        if event.seller_host is not None:
            event.provider = self.prices.seller_at(event.provider, event.seller_host)
        self.ended_uncapped.append((event, self.instant_of(event, log_time_ns)))

    def instant_of(self, event: RunEvent | SessionEvent | RunScored, log_time_ns: int) -> int:
        """The instant at which an event counts; where that is not its own, it counts as skewed, too."""
        at_ns = believed_time(event.at_ns, log_time_ns)
        if at_ns != event.at_ns:
            self.skewed_services.append(event.service)
        return at_ns

    @cached_property
    def calls(self) -> list[Call | None]:
        """Priced once for all projections; parallel to `ended`, `None` where the run is no model call."""
        return [
            price_call(event, capped, at_ns, self.prices) if event.run_type == "llm" else None
            for (event, at_ns), (capped, _) in zip(self.ended_uncapped, self.ended, strict=True)
        ]

    @cached_property
    def priced_calls(self) -> list[PricedCalls]:
        """The calls, sorted by what costs are kept by."""
        found: dict[tuple[int, CostKey], list[Call]] = defaultdict(list)
        for call in self.calls:
            if call is not None:
                event = call.event
                key = (
                    call.provider,
                    call.model,
                    event.service,
                    event.environment,
                    call.price_set,
                    call.price_class,
                )
                found[minute_of(call.at_ns), key].append(call)
        numbers = self.cost_keys.numbers({key for _, key in found})
        return [PricedCalls(minute, key, numbers[key], calls) for (minute, key), calls in found.items()]


def sorted_by_kind(ended: list[Timed]) -> dict[Kind, list[Timed]]:
    """Ended runs by what they count under."""
    found: dict[Kind, list[Timed]] = defaultdict(list)
    for timed in ended:
        found[_kind_of(timed[0])].append(timed)
    return found


def add_up(rows: list[list[int]]) -> list[int]:
    """The sums of the columns of rows of the same length."""
    if len(rows) == 1:
        return rows[0]
    # Adding is quicker for two rows, summing columns (up to three times) for more.
    return list(map(add, *rows)) if len(rows) == 2 else list(map(sum, zip(*rows, strict=True)))


def add_up_by_value(measures: Iterable[tuple[str | None, list[int]]]) -> dict[str, list[int]]:
    """The sums of calls' measures by a value that each comes with; those with `None` are left out."""
    found: dict[str, list[list[int]]] = defaultdict(list)
    for value, row in measures:
        if value is not None:
            found[value].append(row)
    return {value: add_up(rows) for value, rows in found.items()}


def add_row(rows: dict[tuple[Any, ...], list[Any]], key: tuple[Any, ...], measures: list[int]) -> None:
    """Adds measures to the row of a key."""
    row = rows.get(key)
    rows[key] = measures if row is None else list(map(add, row, measures))


def believed_time(at_ns: int, log_time_ns: int) -> int:
    """The instant that decides an event's bucket: its own, unless that is over 60 s after or 8 days before log time."""
    return at_ns if -SKEW_BEHIND_NS <= at_ns - log_time_ns <= SKEW_AHEAD_NS else log_time_ns


def price_call(event: RunEnded, capped: RunEnded, at_ns: int, prices: Prices) -> Call:
    """What a model run used and cost. Unknown is not zero: without usage or price the cost is `None`, and counted.

    `event` is the run as it came, which is priced, `capped` the same with the names under which it counts.
    """
    usage, price_set, price_class = event.usage, prices.price_set, "standard"
    cost: int | None = None
    is_cached = event.usage_source == "cache"
    if is_cached:
        price_class, cost = "cached", 0
    elif event.reported_cost_usd is not None:
        price_set, price_class = "provider", "reported"
        cost = int((Decimal(event.reported_cost_usd) * PICODOLLARS).to_integral_value(ROUND_HALF_EVEN))
    elif usage is not None:
        model = event.model or event.request_model
        priced = prices.price(event.provider, model, usage, at_ns, event.service_tier, marks=_marks_of(event))
        price_class, cost = priced.price_class, priced.cost_picodollars
    if cost is not None and cost > MAX_CALL_PICODOLLARS:
        cost = None
    tokens = _NO_TOKENS if usage is None or is_cached else _counted(usage)
    if cost is not None:
        measures = [1, 1, 0, 0, int(is_cached), *tokens, cost]
    elif usage is not None and usage.input_tokens is not None and usage.output_tokens is not None:
        measures = [1, 0, 1, 0, 0, *tokens, 0]
    else:
        measures = [1, 0, 0, int(event.status == "ok"), 0, *tokens, 0]
    capped_model = capped.model or capped.request_model or ""
    return Call(capped, at_ns, capped.provider or "", capped_model, price_set, price_class, measures, cost)


def _marks_of(event: RunEnded) -> list[str]:
    marks = ["requested"] if event.model_source == "request" else []
    if event.price_facts.get("web_search") == "preview":
        marks.append("preview")
    return marks


def _counted(usage: Usage) -> list[int]:
    """A usage's figures in the order of `rollups.TOKEN_CLASSES`. Written out: a loop over the names takes three times
    as long, for every call.
    """
    return [
        usage.input_tokens or 0,
        usage.cache_read_tokens or 0,
        usage.cache_write_5m_tokens or 0,
        usage.cache_write_1h_tokens or 0,
        usage.input_audio_tokens or 0,
        usage.input_image_tokens or 0,
        usage.output_tokens or 0,
        usage.reasoning_tokens or 0,
        usage.output_audio_tokens or 0,
        usage.web_searches or 0,
    ]
