"""`runtap costs`: what was spent, cut by anything."""

from __future__ import annotations

import time
from contextlib import closing
from decimal import Decimal
from typing import Annotated

import typer

from runtap_consumers.cli import printing
from runtap_consumers.cli.options import Csv, JsonObject, Limit, Since, Until, Wide, instant_of, takes_settings
from runtap_consumers.cli.terminal import print_line, write_csv, write_json
from runtap_consumers.errors import InputError
from runtap_consumers.figures import words
from runtap_consumers.settings import ConsumerSettings

_BLOCKS = "▁▂▃▄▅▆▇█"
_BY = "hour, day, model, provider, service, environment, user, root (of a trace), a key of RUNTAP_COST_BY"


@takes_settings("database_url", "prices", "timezone")
def costs(
    settings: ConsumerSettings,
    by: Annotated[
        list[str] | None,
        typer.Option(help=f"{_BY}; of single runs: name, tag, metadata.KEY. Twice: crossed. [default: model]"),
    ] = None,
    since: Since = None,
    until: Until = None,
    service: Annotated[str | None, typer.Option(help="Only this service.")] = None,
    environment: Annotated[str | None, typer.Option(help="Only this environment.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model, as it answers.")] = None,
    why: Annotated[
        bool, typer.Option("--why", help="Why costs differ from those of the range as long before it, by model.")
    ] = False,
    limit: Limit = 30,
    json: JsonObject = False,
    wide: Wide = False,
    csv: Csv = False,
) -> None:
    """What was spent, by model or what else is asked for; with the month so far, and where it is going."""
    from runtap_consumers.figures.changes import build_changes
    from runtap_consumers.figures.costs import CostQuestion, build_costs
    from runtap_consumers.figures.report import check_service
    from runtap_consumers.pricing.source import load_prices
    from runtap_consumers.store.engine import open_store
    from runtap_consumers.store.read.snapshot import open_snapshot

    now_ns = time.time_ns()
    given = {"service": service, "environment": environment, "provider": provider, "model": model}
    asked = CostQuestion(
        tuple(by or ["model"]),
        instant_of(since, settings, now_ns),
        instant_of(until, settings, now_ns),
        {name: value for name, value in given.items() if value is not None},
    )
    with closing(open_store(settings.database_url)) as store:
        with open_snapshot(store) as snapshot:
            check_service(snapshot, service)
        prices, zone = load_prices(settings), settings.zone()
        if why:
            given.pop("service")
            if refused := [f"--{name}" for name, value in {**given, "by": by}.items() if value]:
                raise InputError(
                    f"--why splits costs by model, of one --service or all: leave out {', '.join(refused)}"
                )
            changes = build_changes(
                store, prices, (asked.since_ns, asked.until_ns), (None, None), service, zone, now_ns
            )
            if json:
                write_json(changes)
            else:
                print_changes(changes, limit or None, wide, csv)
            return
        found = build_costs(store, prices, asked, settings.cost_attributes, zone, now_ns)
    if json:
        write_json(found)
    elif csv:
        write_csv(found["rows"], leave_out=("series_usd",))
    else:
        print_costs(found, limit or None, wide)


def print_costs(found: words.Row, limit: int | None = None, wide: bool = False) -> None:
    """Prints what `runtap_consumers.figures.costs.build_costs` returned."""
    console = printing.open_console(wide)
    begin, end = (found["range"][name][:16].replace("T", " ") for name in ("from", "to"))
    total, by = found["total"], found["by"]
    print_line(console, f"Costs by {' and '.join(by)}, {begin} to {end} ({found['timezone']})", style="bold")
    if not total["calls"]:
        print_line(console, "There was no call in this range: --since 7d looks further back.")
        return
    is_timed = by[0] in ("hour", "day")
    rows = [
        {
            **row,
            **{name: "(none)" if row[name] is None else _short(name, row[name]) for name in by},
            "over_time": None if is_timed else sparkline(row["series_usd"]),
        }
        for row in found["rows"]
    ]
    if is_timed:
        most = max((Decimal(row["cost_usd"] or 0) for row in rows), default=Decimal(0))
        for row in rows:
            row["over_time"] = "━" * round(20 * float(Decimal(row["cost_usd"] or 0) / most)) if most else ""
    # Two names leave no room on a narrow screen for more than what was asked for.
    extra = "?" if len(by) > 1 else ""
    columns = (
        f"{' '.join(f'{name}<24' for name in by)} calls unpriced_calls? input_tokens{extra} output_tokens? "
        f"cached_share{extra} saved_usd? share cost_usd over_time{extra}"
    )
    printing.print_table(console, None, columns, rows, limit)
    if limit and len(rows) > limit:
        print_line(console, f"… and {len(rows) - limit:,} rows more: --limit 0 shows all.", style="dim")
    print_line(console, _sums(total))
    if found["source"] == "runs":
        print_line(
            console,
            "Of single runs, as far as they are kept; a run with two tags counts under both, and once in the total.",
            style="dim",
        )
    if (month := found["month"]) is not None:
        text = f"This month so far: {words.money(month['cost_usd'])}"
        if month["forecast_usd"] is not None:
            text += f"; it will be about {words.money(month['forecast_usd'])} ({words.money(month['least_usd'])} to "
            text += f"{words.money(month['most_usd'])}): {month['method']}"
        else:
            text += "; three whole days tell where it is going."
        print_line(console, text)


_WHAT_CHANGED = {
    "volume": "more or fewer calls",
    "mix": "other models, or shares of them",
    "tokens": "more or fewer tokens a call",
    "cached": "more or less of the input cached",
    "price": "other prices, tiers, sizes",
    "other": "bills, web searches, prices no longer known",
}


def print_changes(found: words.Row, limit: int | None = None, wide: bool = False, csv: bool = False) -> None:
    """Prints what `runtap_consumers.figures.changes.build_changes` returned."""
    rows = [
        {
            "model": row["model"] or "(none)",
            **{f"{part}_usd": amount for part, amount in row["parts_usd"].items()},
            **{name: row[name] for name in ("provider", "cost_before_usd", "cost_usd", "difference_usd")},
        }
        for row in found["models"]
        if row["cost_usd"] != "0" or row["cost_before_usd"] != "0"
    ]
    if csv:
        write_csv(rows)
        return
    console = printing.open_console(wide)
    ranges = [
        " to ".join(found[of][name][:16].replace("T", " ") for name in ("from", "to")) for of in ("range", "before")
    ]
    print_line(console, f"Why costs changed: {ranges[0]}, against {ranges[1]} ({found['timezone']})", style="bold")
    before, now, difference = (words.money(found[name]) for name in ("cost_before_usd", "cost_usd", "difference_usd"))
    print_line(console, f"{before} before, {now} now: {difference}")
    parts = [
        {"part": part, "what_changed": what, "difference_usd": found["parts_usd"][part]}
        for part, what in _WHAT_CHANGED.items()
    ]
    printing.print_table(console, None, "part what_changed difference_usd", parts, None)
    columns = f"model<24 {' '.join(f'{part}_usd?' for part in _WHAT_CHANGED)} difference_usd"
    printing.print_table(console, None, columns, rows, limit)


def _sums(total: words.Row) -> str:
    text = f"Total: {words.money(total['cost_usd'])} for {total['calls']:,} calls, {total['input_tokens']:,} tokens in"
    if total["cached_share"]:
        text += f" ({total['cached_share']:.1%} cached"
        text += ")" if total["saved_usd"] is None else f", which saved {words.money(total['saved_usd'])})"
    text += f", {total['output_tokens']:,} out"
    unpriced = "without a price: `runtap prices unmatched`"
    for name, what in (("unpriced_calls", unpriced), ("unmetered_calls", "without usage")):
        if total[name]:
            text += f"; {total[name]:,} {what}"
    return text


def sparkline(series: list[str]) -> str:
    """Amounts as blocks of eight heights, at most 24 of them."""
    amounts = [Decimal(amount) for amount in series]
    step = -(-len(amounts) // 24) or 1
    joined = [sum(amounts[first : first + step], Decimal(0)) for first in range(0, len(amounts), step)]
    most = max(joined, default=Decimal(0))
    if not most:
        return ""
    return "".join(" " if not one else _BLOCKS[min(int(one / most * 8), 7)] for one in joined)


def _short(name: str, value: str) -> str:
    return value[:10] if name == "day" else value[:16].replace("T", " ") if name == "hour" else value
