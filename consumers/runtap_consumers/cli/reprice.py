"""`runtap reprice`: history under today's prices."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import typer

from runtap_consumers.cli.options import takes_settings
from runtap_consumers.cli.printing import open_console, print_table
from runtap_consumers.cli.terminal import print_line, say
from runtap_consumers.errors import InputError
from runtap_consumers.figures.words import money
from runtap_consumers.instants import EXPECTED, dollars, local_time, parse_instant
from runtap_consumers.settings import ConsumerSettings

if TYPE_CHECKING:
    from runtap_consumers.correct.reprice import Repricing


@takes_settings("database_url", "prices")
def reprice(
    settings: ConsumerSettings,
    since: Annotated[
        str, typer.Option("--from", metavar="DATE", help=f"First day, of the store's time zone: {EXPECTED}.")
    ],
    until: Annotated[
        str | None, typer.Option("--to", metavar="DATE", help="First day that is left as it is; none if left out.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only models of this name; * stands for anything.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider, as calls name it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Prices past calls again: costs, sessions and runs. Workers may run; give them the same prices first."""
    from runtap_consumers.correct import reprice as repricing
    from runtap_consumers.pricing.source import load_prices
    from runtap_consumers.store.engine import open_store

    prices = load_prices(settings)
    with closing(open_store(settings.database_url)) as store:
        now_ns = time.time_ns()
        from_ns = parse_instant(since, store.zone, now_ns)
        to_ns = None if until is None else parse_instant(until, store.zone, now_ns)
        if to_ns is not None and to_ns <= from_ns:
            raise InputError(f"the range ends before it begins: --from {since}, --to {until}")
        request = repricing.Request(from_ns, to_ns, provider, model)
        if dry_run or not yes:
            foreseen = repricing.reprice(store, prices, request, _who(), time.time_ns, is_dry_run=True)
            _print(foreseen, prices.price_set, store.zone)
        if dry_run:
            return
        if not yes and not typer.confirm("Write this?"):
            raise typer.Exit(1)
        done = repricing.reprice(store, prices, request, _who(), time.time_ns)
        if yes:
            _print(done, prices.price_set, store.zone)
    say(f"Done: {done.counts['rows_changed']:,} rows, {done.counts['runs']:,} single runs among them.")


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _print(outcome: Repricing, price_set: str, zone: ZoneInfo) -> None:
    console, counts = open_console(), outcome.counts
    for name, where in (
        ("kept_calls", f"of days ({counts['kept_hour_calls']:,} in hours that cannot be told; other hours are gone)"),
        ("kept_session_calls", "in sessions that cannot be told, or reach beyond the range"),
        ("kept_attribute_calls", "in days by attribute that cannot be told"),
    ):
        if counts[name]:
            print_line(console, f"Kept under their old prices: {counts[name]:,} calls {where}.")
    if not counts["rows_changed"]:
        print_line(console, f"Nothing in this range is priced otherwise than by {price_set}.")
        return
    rows = [
        {"day": f"{local_time(day_ns, zone):%Y-%m-%d}", "provider": provider, "model": model, **_in_dollars(difference)}
        for (day_ns, provider, model), difference in sorted(outcome.days.items())
    ]
    rows.append({"day": "all", "provider": None, "model": None, **_in_dollars(outcome.total)})
    columns = "day provider? model<20 calls unpriced_before? unpriced_now? old_cost_usd new_cost_usd difference"
    print_table(console, f"Costs under {price_set}", columns, rows)
    print_line(console, f"Calls in sessions: {counts['session_calls']:,}. Single runs: {counts['runs']:,}.")


def _in_dollars(difference: Counter[str]) -> dict[str, Any]:
    old, new = difference["old_picodollars"], difference["new_picodollars"]
    return {
        "calls": difference["calls"],
        "unpriced_before": difference["old_unpriced_calls"],
        "unpriced_now": difference["new_unpriced_calls"],
        "old_cost_usd": dollars(old),
        "new_cost_usd": dollars(new),
        "difference": f"{'-' if new < old else '+'}{money(dollars(abs(new - old)))}",
    }
