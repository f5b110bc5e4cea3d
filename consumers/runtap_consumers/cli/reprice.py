"""`runtap reprice`: history under today's prices."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from runtap_consumers.cli.lines import say
from runtap_consumers.cli.options import takes_settings
from runtap_consumers.errors import InputError, RepriceRefusedError
from runtap_consumers.instants import EXPECTED, parse_instant
from runtap_consumers.settings import ConsumerSettings

_REASONS_SHOWN = 5


@takes_settings("prices", "price_data")
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
    keep_inexact: Annotated[
        bool, typer.Option("--keep-inexact", help="Leave what cannot be priced exactly as it is, instead of refusing.")
    ] = False,
) -> None:
    """Prices past calls again: costs, sessions and runs. Workers may run; give them the same prices first."""
    from runtap_consumers.cli.printing_costs import print_repricing
    from runtap_consumers.correct import Request, apply_repricing, preview_repricing
    from runtap_consumers.pricing.source import load_prices
    from runtap_consumers.store.engine import open_store

    table = load_prices(settings)
    store = open_store(settings.database_url)
    try:
        now_ns = time.time_ns()
        from_ns = parse_instant(since, store.zone, now_ns)
        to_ns = None if until is None else parse_instant(until, store.zone, now_ns)
        if to_ns is not None and to_ns <= from_ns:
            raise InputError(f"the range ends before it begins: --from {since}, --to {until}")
        request = Request(from_ns, to_ns, provider, model)
        foreseen = preview_repricing(store, table, request)
        print_repricing(foreseen, table.price_set, store.zone)
        if foreseen.inexact and not keep_inexact:
            raise RepriceRefusedError(_refusal(foreseen.inexact))
        if dry_run:
            return
        if not yes and not typer.confirm("Write this?"):
            raise typer.Exit(1)
        done = apply_repricing(store, table, request, foreseen, _who(), time.time_ns)
    finally:
        store.close()
    left = f"; {len(done.inexact):,} rows were left as they were" if done.inexact else ""
    say(f"Done: {done.rows:,} rows, {done.runs.calls:,} single runs among them{left}.")


def _refusal(inexact: Sequence[object]) -> str:
    shown = "; ".join(str(each) for each in inexact[:_REASONS_SHOWN])
    return (
        f"{len(inexact):,} rows cannot be priced exactly, so nothing was written: {shown}"
        f"{'; …' if len(inexact) > _REASONS_SHOWN else ''}. Narrow --from, --to or --model, or leave such rows as they "
        "are with --keep-inexact"
    )


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
