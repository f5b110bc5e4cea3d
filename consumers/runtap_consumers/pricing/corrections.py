"""genai-prices' data with runtap's corrections (`corrections.toml`, which says why each of them is there)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files

from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
)

from runtap_consumers.pricing.overrides import OwnPrice, parse_overrides

FILE_NAME = "corrections.toml"
# Written into `ModelInfo.price_comments`, from where `runtap prices show` reads it.
CORRECTED = f"corrected by runtap ({FILE_NAME})"


def load_corrections() -> tuple[OwnPrice, ...]:
    """The entries of the file that is part of the package."""
    text = (files(__package__) / FILE_NAME).read_text(encoding="utf-8")
    return parse_overrides(text, FILE_NAME).price


def correct(providers: Sequence[Provider], corrections: Sequence[OwnPrice]) -> list[Provider]:
    """The data with corrections. What is given stays as it is: a process has one copy of it.

    Args:
        providers: as genai-prices declares them.
        corrections: entries that name a provider by genai-prices' id, a model by its whole name, and no tier.
    """
    corrected = {provider.id: provider for provider in providers}
    for entry in corrections:
        # Newer price data may no longer have the provider.
        if (provider := corrected.get(entry.provider or "")) is not None:
            corrected[provider.id] = replace(provider, models=_with_correction(provider, entry))
    return list(corrected.values())


def _with_correction(provider: Provider, entry: OwnPrice) -> list[ModelInfo]:
    listed = provider.find_model(entry.model)
    if listed is None:
        added = ModelInfo(
            id=entry.model,
            match=ClauseEquals(equals=entry.model),
            price_comments=CORRECTED,
            prices=entry.model_price(),
        )
        return [*provider.models, added]
    if entry.begins is None:
        return provider.models
    before = [ConditionalPrice(prices=listed.prices)] if isinstance(listed.prices, ModelPrice) else listed.prices
    since = ConditionalPrice(prices=entry.model_price(), constraint=StartDateConstraint(start_date=entry.begins))
    corrected = replace(listed, prices=[*before, since], price_variants=None, price_comments=CORRECTED)
    return [corrected if model is listed else model for model in provider.models]
