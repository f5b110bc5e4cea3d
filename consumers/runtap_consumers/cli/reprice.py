"""`runtap reprice`: history under today's prices."""

from __future__ import annotations

import getpass
import os
import socket
import time
from typing import Annotated

import typer

from runtap_consumers.cli.lines import say
from runtap_consumers.cli.options import takes_settings
from runtap_consumers.errors import InputError
from runtap_consumers.instants import EXPECTED, parse_instant
from runtap_consumers.settings import ConsumerSettings


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
    from runtap_consumers.cli.printing_costs import print_repricing
    from runtap_consumers.correct import reprice as repricing
    from runtap_consumers.pricing.source import load_prices
    from runtap_consumers.store.engine import open_store

    prices = load_prices(settings)
    store = open_store(settings.database_url)
    try:
        now_ns = time.time_ns()
        from_ns = parse_instant(since, store.zone, now_ns)
        to_ns = None if until is None else parse_instant(until, store.zone, now_ns)
        if to_ns is not None and to_ns <= from_ns:
            raise InputError(f"the range ends before it begins: --from {since}, --to {until}")
        request = repricing.Request(from_ns, to_ns, provider, model)
        if dry_run or not yes:
            foreseen = repricing.reprice(store, prices, request, _who(), time.time_ns, is_dry_run=True)
            print_repricing(foreseen, prices.price_set, store.zone)
        if dry_run:
            return
        if not yes and not typer.confirm("Write this?"):
            raise typer.Exit(1)
        done = repricing.reprice(store, prices, request, _who(), time.time_ns)
        if yes:
            print_repricing(done, prices.price_set, store.zone)
    finally:
        store.close()
    say(f"Done: {done.counts['rows_changed']:,} rows, {done.counts['runs']:,} single runs among them.")


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
