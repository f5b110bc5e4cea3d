"""What alert rules judge: each quantity is one function of figures, for any stretch of time and any group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial

from runtap_consumers.figures.completeness import work_out_completeness, work_out_ledger
from runtap_consumers.figures.runs import abandoned_before
from runtap_consumers.figures.words import duration, money
from runtap_consumers.projections.rollups import COST, ERRORS, PERFORMANCE, ROOTS, SCORE_UNIT, SCORES, Rollup
from runtap_consumers.projections.sketch import quantiles_ns
from runtap_consumers.store.read.books import read_books
from runtap_consumers.store.read.runs import count_unended
from runtap_consumers.store.read.snapshot import Snapshot
from runtap_consumers.store.read.window_sums import Group, Sums
from runtap_consumers.units import PICODOLLARS, SECOND_NS

ATTRIBUTES = ("user", "root")
_OF_ATTRIBUTES = ("cost", "calls", "tokens")
_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Quantity:
    """A quantity of a window, worked out from sums of a rollup's rows.

    Attributes:
        title: for people.
        unit: of the value: `USD`, `share` (0 to 1), `s`, or what is counted.
        rollup: whose rows are added up.
        measures: which of their measures.
        value: of the sums; `None` where it means nothing, without calls say.
        calls: how many calls stand behind it: what `least_calls` counts.
        only_grows: more events can only raise it: it may fire before its window is over, or complete.
        command: which command of `runtap` shows it.
        where: what is meant unless a rule says otherwise.
    """

    title: str
    unit: str
    rollup: Rollup
    measures: tuple[str, ...]
    value: Callable[[Sums], Decimal | None]
    calls: Callable[[Sums], int]
    only_grows: bool = False
    command: str = "report"
    where: Mapping[str, str] = field(default_factory=dict)

    def names(self, attributes: Sequence[str]) -> tuple[str, ...]:
        """By what it can be grouped and filtered. `attributes`: the keys of RUNTAP_COST_BY."""
        keys = tuple(name for name in self.rollup.keys if name not in ("price_set", "price_class", "fingerprint"))
        is_by_attribute = any(self is QUANTITIES[name] for name in _OF_ATTRIBUTES)
        return (*keys, *ATTRIBUTES, *attributes) if is_by_attribute else keys


def _share(part: str, *whole: str) -> Callable[[Sums], Decimal | None]:
    def share(sums: Sums) -> Decimal | None:
        total = sum(sums.get(name, 0) for name in whole)
        return Decimal(sums.get(part, 0)) / total if total else None

    return share


def _count(*names: str) -> Callable[[Sums], int]:
    return lambda sums: sum(sums.get(name, 0) for name in names)


def _number(*names: str) -> Callable[[Sums], Decimal]:
    return lambda sums: Decimal(sum(sums.get(name, 0) for name in names))


def _quantile(sketch: str, fraction: float, sums: Sums) -> Decimal | None:
    (found,) = quantiles_ns(sums.get(sketch, b""), [fraction])
    return None if found is None else Decimal(int(found)) / SECOND_NS


def _mean(sums: Sums) -> Decimal | None:
    return Decimal(sums["total_ns"]) / sums["count"] / SECOND_NS if sums.get("count") else None


_RUNS = _count("ok", "errors")


def _of_costs(
    title: str,
    unit: str,
    measures: tuple[str, ...],
    value: Callable[[Sums], Decimal | None],
    only_grows: bool = False,
) -> Quantity:
    return Quantity(title, unit, COST, ("calls", *measures), value, _count("calls"), only_grows, command="costs")


def _of_model_calls(
    title: str,
    unit: str,
    measures: tuple[str, ...],
    value: Callable[[Sums], Decimal | None],
    calls: Callable[[Sums], int],
) -> Quantity:
    return Quantity(title, unit, PERFORMANCE, measures, value, calls, where={"run_type": "llm"})


def _quantiles(name: str, title: str, count: str, sketch: str) -> dict[str, Quantity]:
    return {
        f"{name}_{each}": _of_model_calls(
            f"{each} {title}", "s", (count, sketch), partial(_quantile, sketch, fraction), _count(count)
        )
        for each, fraction in _QUANTILES.items()
    }


QUANTITIES: dict[str, Quantity] = {
    "cost": _of_costs(
        "cost",
        "USD",
        ("cost_picodollars",),
        lambda sums: Decimal(sums.get("cost_picodollars", 0)) / PICODOLLARS,
        only_grows=True,
    ),
    "calls": _of_costs("model calls", "calls", (), _number("calls"), only_grows=True),
    "tokens": _of_costs(
        "tokens",
        "tokens",
        ("input_tokens", "output_tokens"),
        _number("input_tokens", "output_tokens"),
        only_grows=True,
    ),
    "unpriced_share": _of_costs(
        "share of calls without a price", "share", ("unpriced_calls",), _share("unpriced_calls", "calls")
    ),
    "unmetered_share": _of_costs(
        "share of calls without usage", "share", ("unmetered_calls",), _share("unmetered_calls", "calls")
    ),
    "cached_share": _of_costs(
        "cached share of input tokens",
        "share",
        ("input_tokens", "cache_read_tokens"),
        _share("cache_read_tokens", "input_tokens"),
    ),
    "error_rate": Quantity(
        "share of root runs that failed",
        "share",
        ROOTS,
        ("ok", "errors", "sample_error_run_id"),
        _share("errors", "ok", "errors"),
        _RUNS,
    ),
    "errors": Quantity("errors", "errors", ERRORS, ("count",), _number("count"), _count("count"), only_grows=True),
    "failure_rate": _of_model_calls(
        "share of calls that failed", "share", ("ok", "errors"), _share("errors", "ok", "errors"), _RUNS
    ),
    "cut_off_share": _of_model_calls(
        "share of answers cut off", "share", ("ok", "cut_off"), _share("cut_off", "ok"), _count("ok")
    ),
    "refused_share": _of_model_calls(
        "share of answers refused", "share", ("ok", "refused"), _share("refused", "ok"), _count("ok")
    ),
    "score": Quantity(
        "mean score",
        "points",
        SCORES,
        ("count", "score_billionths"),
        lambda sums: Decimal(sums["score_billionths"]) / SCORE_UNIT / sums["count"] if sums.get("count") else None,
        _count("count"),
        where={"value": ""},
    ),
    "latency_mean": _of_model_calls("mean duration", "s", ("count", "total_ns"), _mean, _count("count")),
    **_quantiles("latency", "duration", "count", "sketch"),
    **_quantiles("time_to_first_token", "time to first token", "first_token_count", "first_token_sketch"),
}


@dataclass(frozen=True)
class Present:
    """The present, as figures need it that have no window. `behind_ns`: how old the oldest unread record is at most."""

    now_ns: int
    behind_ns: int


@dataclass(frozen=True)
class PresentQuantity:
    """A quantity of the present moment, by group. `read` is told what to group by, and what must and must not hold."""

    title: str
    unit: str
    group_names: tuple[str, ...]
    read: Callable[[Snapshot, Present, Sequence[str], Mapping[str, str], Mapping[str, str]], dict[Group, Decimal]]
    command: str


def _read_abandoned(
    snapshot: Snapshot,
    _present: Present,
    group_by: Sequence[str],
    where: Mapping[str, str],
    without: Mapping[str, str],
) -> dict[Group, Decimal]:
    before_ns = abandoned_before(work_out_completeness(read_books(snapshot), ("runs",)).at_ns)
    if before_ns is None:
        return {}
    counts = count_unended(snapshot, before_ns, group_by, where, without)
    return {group: Decimal(count) for group, count in counts.items()}


def _read_lag(_snapshot: Snapshot, present: Present, *_filters: object) -> dict[Group, Decimal]:
    return {(): Decimal(present.behind_ns) / SECOND_NS}


PRESENT_QUANTITIES = {
    "abandoned_runs": PresentQuantity(
        "runs that never ended",
        "runs",
        ("service", "environment", "run_type", "name"),
        _read_abandoned,
        "runs --status abandoned",
    ),
    "worker_lag": PresentQuantity("lag of the workers", "s", (), _read_lag, "ledger"),
}


def read_lost(snapshot: Snapshot) -> int:
    """Events that were lost, of all time."""
    return max((sums.lost for sums in work_out_ledger(read_books(snapshot), snapshot.projections).values()), default=0)


def shown_value(value: Decimal, unit: str) -> str:
    """A value for people, with its unit."""
    if unit == "USD":
        return money(format(value, "f"))
    if unit == "share":
        return f"{value:.1%}"
    return duration(float(value)) if unit == "s" else f"{value.normalize():,f} {unit}"


def decimal_text(value: Decimal) -> str:
    """A value as JSON has it: no exponent, at most 12 decimals (a picodollar), no zeros at the end."""
    text = format(round(value, 12), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
