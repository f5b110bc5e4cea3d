"""Prices for people to look at."""

from __future__ import annotations

from typing import Any

from runtap_consumers.instants import dollars
from runtap_consumers.pricing.corrections import CORRECTED
from runtap_consumers.pricing.rates import KNOWN_TIERS, Rates
from runtap_consumers.pricing.table import PriceTable
from runtap_consumers.units import DAY_NS

# Rates are differences from the price of the total that contains them.
_PARTS = {
    "cache_read": "input",
    "cache_write_5m": "input",
    "cache_write_1h": "input",
    "input_audio": "input",
    "input_image": "input",
    "reasoning": "output",
    "output_audio": "output",
}


def list_rates(table: PriceTable, provider: str | None, model: str, at_ns: int) -> list[dict[str, Any]] | None:
    """A model's prices on a day, one row a price class; `None` where it has none.

    Args:
        table: the prices.
        provider: as calls name it.
        model: likewise.
        at_ns: an instant of the day.
    """
    sold = table.sellers.find(provider, model)
    if sold is None:
        return None
    own_tiers = [own.tier for own in sold.terms.prices if own.tier] + [factor.tier for factor in sold.terms.tiers]
    tiers = dict.fromkeys((*KNOWN_TIERS, *own_tiers))
    rows: list[dict[str, Any]] = []
    for tier in (None, *tiers):
        for cells in table.plan(provider, model, tier, at_ns // DAY_NS).cells:
            last: Rates | None = None
            for price_class, rates in cells:
                # No row for a size at which this model's price does not change, nor for a window's part after midnight.
                if rates is not None and rates != last and price_class not in (row["price_class"] for row in rows):
                    rows.append(
                        {
                            "provider": sold.provider.id if sold.provider else provider,
                            "model": sold.model.id if sold.model else sold.name,
                            "is_own": bool(sold.terms.prices or sold.terms.tiers or sold.terms.discounts),
                            "is_corrected": sold.model is not None and sold.model.price_comments == CORRECTED,
                            "price_class": price_class,
                            **_in_dollars(rates),
                        }
                    )
                last = rates
    return rows or None


def _in_dollars(rates: Rates) -> dict[str, str | None]:
    """Dollars per million tokens, per thousand searches and requests."""
    prices: dict[str, str | None] = {}
    for name in ("input", "output", *_PARTS):
        rate: int | None = getattr(rates, name)
        whole = getattr(rates, _PARTS[name]) if name in _PARTS else 0
        prices[name] = dollars(None if rate is None else (rate + whole) * 10**6)
    prices["web_search"] = dollars(None if rates.web_search is None else rates.web_search * 10**3)
    prices["request"] = dollars(rates.request * 10**3)
    return prices
