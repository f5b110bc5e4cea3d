"""Prices and costs as tables for people."""

from __future__ import annotations

from collections import Counter
from typing import Any
from zoneinfo import ZoneInfo

from runtap_consumers.cli.printing import Column, money, open_console, print_table
from runtap_consumers.cli.terminal import print_line
from runtap_consumers.correct.reprice import Repricing
from runtap_consumers.instants import dollars, local_time

_PRICES_SHOWN = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning")


def print_rates(rows: list[dict[str, Any]], price_set: str) -> None:
    """Prints rows of `runtap_consumers.pricing.listing.list_rates`."""
    first = rows[0]
    listed = "the table as runtap corrects it" if first["is_corrected"] else "the table"
    origin = f"your own terms over {listed}" if first["is_own"] else listed
    name = " ".join(filter(None, (first["provider"], first["model"])))
    title = f"{name}: dollars per million tokens, from {origin} ({price_set})"
    columns = [Column("Price class")] + [Column(name.replace("_", " "), is_number=True) for name in _PRICES_SHOWN]
    columns += [Column("search /1k", is_number=True, is_essential=False), Column("request /1k", is_number=True)]
    names = (*_PRICES_SHOWN, "web_search", "request")
    print_table(open_console(), title, columns, [[row["price_class"], *(row[name] for name in names)] for row in rows])


def print_unmatched(rows: list[dict[str, Any]]) -> None:
    """Prints the models without a price."""
    console = open_console()
    if not rows:
        console.print("Every call with usage has a price.")
        return
    columns = [
        *(Column("Provider"), Column("Model", longest=40), Column("Unpriced calls", is_number=True)),
        *(Column("Tokens in", is_number=True), Column("out", is_number=True), Column("Nearest known", is_prose=True)),
    ]
    cells = [
        [
            row["provider"],
            row["model"],
            *(f"{row[name]:,}" for name in ("unpriced_calls", "input_tokens", "output_tokens")),
            _advice(row),
        ]
        for row in rows
    ]
    print_table(console, "Calls without a price", columns, cells, len(cells))


def _advice(row: dict[str, Any]) -> str:
    if row["impossible_calls"] == row["unpriced_calls"]:
        return "their parts exceed their totals: see the single runs"
    # A known model may still lack a price for what some calls used.
    return "known by now: runtap reprice" if row["is_known"] else ", ".join(row["nearest"])


def print_repricing(outcome: Repricing, price_set: str, zone: ZoneInfo) -> None:
    """Prints what a repricing changes, by day and model."""
    console = open_console()
    counts = outcome.counts
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
    columns = [
        *(Column("Day"), Column("Provider", is_essential=False), Column("Model", longest=40)),
        *(
            Column(title, is_number=True)
            for title in ("Calls", "Unpriced", "now", "Old cost", "New cost", "Difference")
        ),
    ]
    cells: list[list[str | None]] = [
        [f"{local_time(day_ns, zone):%Y-%m-%d}", provider, model, *_difference_cells(difference)]
        for (day_ns, provider, model), difference in sorted(outcome.days.items())
    ]
    cells.append(["all", None, None, *_difference_cells(outcome.total)])
    print_table(console, f"Costs under {price_set}", columns, cells, len(cells))
    print_line(console, f"Calls in sessions: {counts['session_calls']:,}. Single runs: {counts['runs']:,}.")


def _difference_cells(difference: Counter[str]) -> list[str | None]:
    change = difference["new_picodollars"] - difference["old_picodollars"]
    return [
        *(f"{difference[name]:,}" for name in ("calls", "old_unpriced_calls", "new_unpriced_calls")),
        *(money(dollars(difference[name])) for name in ("old_picodollars", "new_picodollars")),
        f"{'-' if change < 0 else '+'}{money(dollars(abs(change)))}",
    ]


def print_attribution(figures: dict[str, Any]) -> None:
    """Prints costs of `runtap_consumers.figures.attribution.build_attribution`."""
    console = open_console()
    titles = ("Calls", "Unpriced", "Tokens in", "out", "Cost")
    columns = [Column(figures["attribute"], longest=40), *(Column(title, is_number=True) for title in titles)]
    names = ("calls", "unpriced_calls", "input_tokens", "output_tokens")
    cells = [
        [row["value"] or "(none)", *(f"{row[name]:,}" for name in names), money(row["cost_usd"])]
        for row in figures["values"]
    ]
    begin, end = (figures["range"][name][:16].replace("T", " ") for name in ("from", "to"))
    title = f"Cost by {figures['attribute']}, {begin} to {end}: {money(figures['cost_usd']) or 'unknown'}"
    if not cells:
        print_line(console, f"{title}: there was no call in this range.")
        return
    print_table(console, title, columns, cells, 50)
