"""
Prices and costs as tables for people.
"""

from __future__ import annotations

from typing import Any

from runtap_consumers.printing import Column, open_console, print_table

_PRICES_SHOWN = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning")


def print_rates(rows: list[dict[str, Any]], price_set: str) -> None:
    """
    Prints rows of `runtap_consumers.pricing.listing.list_rates`.
    """
    first = rows[0]
    origin = "your own terms over the table" if first["is_own"] else "the table"
    title = f"{first['provider']} {first['model']}: dollars per million tokens, from {origin} ({price_set})"
    columns = [Column("Price class")] + [Column(name.replace("_", " "), is_number=True) for name in _PRICES_SHOWN]
    columns += [Column("search /1k", is_number=True, is_essential=False), Column("request /1k", is_number=True)]
    names = (*_PRICES_SHOWN, "web_search", "request")
    print_table(open_console(), title, columns, [[row["price_class"], *(row[name] for name in names)] for row in rows])


def print_unmatched(rows: list[dict[str, Any]]) -> None:
    """
    Prints the models without a price.
    """
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
            "known by now: runtap reprice" if row["is_known"] else ", ".join(row["nearest"]),
        ]
        for row in rows
    ]
    print_table(console, "Calls without a price", columns, cells, len(cells))
