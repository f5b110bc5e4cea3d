"""`runtap prices`: what calls are priced at, and what has no price."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from runtap_consumers.cli.options import JsonLines, takes_settings
from runtap_consumers.cli.printing import print_list
from runtap_consumers.cli.terminal import say
from runtap_consumers.errors import InputError
from runtap_consumers.settings import ConsumerSettings

prices_app = typer.Typer(help="What calls are priced at, and what has no price.", no_args_is_help=True)
_RATES = "price_class input cache_read cache_write_5m cache_write_1h output reasoning web_search? request"


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
    json: JsonLines = False,
) -> None:
    """Today's prices of a model, by price class, in dollars per million tokens."""
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
    first = found[0]
    listed = "the table as runtap corrects it" if first["is_corrected"] else "the table"
    origin = f"your own terms over {listed}" if first["is_own"] else listed
    name = " ".join(filter(None, (first["provider"], first["model"])))
    if not json:
        say(f"{name}: dollars per million tokens, a thousand searches or requests, from {origin} ({table.price_set})")
    print_list(found, _RATES, "", json)


@prices_app.command()
@takes_settings("database_url", "prices")
def unmatched(settings: ConsumerSettings, json: JsonLines = False) -> None:
    """Models with calls that have usage and no price, and what to do about it."""
    from runtap_consumers.correct.unpriced import list_unpriced
    from runtap_consumers.pricing.source import load_prices
    from runtap_consumers.store.read.snapshot import open_reader

    prices = load_prices(settings)
    with open_reader(settings.database_url) as snapshot:
        found = list_unpriced(snapshot, prices)
    columns = "provider model<28 unpriced_calls input_tokens output_tokens advice*"
    print_list(found, columns, "Every call with usage has a price.", json)


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
