"""`runtap prices`: what calls are priced at, and what has no price."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from runtap_consumers.cli.lines import say, write_lines
from runtap_consumers.cli.options import takes_settings
from runtap_consumers.errors import InputError
from runtap_consumers.settings import ConsumerSettings

prices_app = typer.Typer(help="What calls are priced at, and what has no price.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@prices_app.callback()
def prices() -> None:
    """What calls are priced at, and what has no price."""


@prices_app.command()
def check(file: Annotated[Path, typer.Argument(metavar="FILE", help="As for RUNTAP_PRICES.")]) -> None:
    """Checks a file of own prices; names every mistake."""
    from runtap_consumers.pricing.overrides import load_overrides

    overrides = load_overrides(file)
    aliases = sum(len(names) for names in overrides.aliases.values())
    counts = f"{len(overrides.price)} prices, {len(overrides.tier)} tiers, {len(overrides.discount)} discounts"
    say(f"{file}: right: {counts}, {aliases} aliases")


@prices_app.command()
@takes_settings("database_url", "prices")
def show(
    settings: ConsumerSettings,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As calls name it, also `provider/model`.")],
    provider: Annotated[str | None, typer.Option(help="As calls name it; else the model's name decides.")] = None,
    json: Json = False,
) -> None:
    """Today's prices of a model, by price class, in dollars per million tokens."""
    from runtap_consumers.cli.printing_costs import print_rates
    from runtap_consumers.pricing.listing import list_rates
    from runtap_consumers.pricing.source import load_prices

    table = load_prices(settings)
    found = list_rates(table, provider, model, time.time_ns())
    if found is None:
        nearest = ", ".join(table.sellers.nearest(provider, model))
        raise InputError(
            f"there is no price for {model!r} in {table.price_set}"
            f"{f': the nearest known are {nearest}' if nearest else ''}. A file in RUNTAP_PRICES can add one"
            f"{'' if provider else '; if one does for a provider, name it with --provider'}"
        )
    if json:
        write_lines(found)
    else:
        print_rates(found, table.price_set)


@prices_app.command()
@takes_settings("database_url", "prices")
def unmatched(settings: ConsumerSettings, json: Json = False) -> None:
    """Models with calls that have usage and no price, with the nearest known names."""
    from runtap_consumers.cli.printing_costs import print_unmatched
    from runtap_consumers.pricing.source import load_prices
    from runtap_consumers.store.engine import open_store
    from runtap_consumers.store.read.snapshot import open_snapshot
    from runtap_consumers.store.read.unmatched import read_unpriced

    sellers = load_prices(settings).sellers
    store = open_store(settings.database_url)
    try:
        with open_snapshot(store) as snapshot:
            found = [
                {
                    "provider": row.provider or None,
                    "model": row.model or None,
                    "unpriced_calls": row.calls,
                    "impossible_calls": row.impossible_calls,
                    "input_tokens": row.input_tokens,
                    "output_tokens": row.output_tokens,
                    "is_known": sellers.find(row.provider, row.model) is not None,
                    "nearest": sellers.nearest(row.provider, row.model),
                }
                for row in read_unpriced(snapshot)
            ]
    finally:
        store.close()
    if json:
        write_lines(found)
    else:
        print_unmatched(found)


@prices_app.command()
@takes_settings("database_url")
def update(
    settings: ConsumerSettings,
    from_file: Annotated[
        Path | None, typer.Option("--from-file", metavar="FILE", help="genai-prices' data.json; else from the network.")
    ] = None,
) -> None:
    """Takes newer data of genai-prices without a reinstall; running workers read them within seconds."""
    from runtap_consumers.pricing.source import update_prices

    done = update_prices(settings, from_file, time.time_ns())
    say(f"{done.path}: {done.models:,} models as {done.name}. `runtap reprice` corrects what was priced before.")
