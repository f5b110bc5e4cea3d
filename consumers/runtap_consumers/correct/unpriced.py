"""What has no price, and what of it a repricing would price: `list_unpriced`."""

from __future__ import annotations

from collections import Counter
from typing import TypedDict

from runtap_consumers.correct.price_terms import find_terms
from runtap_consumers.pricing import PriceTable
from runtap_consumers.pricing.sellers import UNKNOWN_SELLER
from runtap_consumers.store.read.snapshot import Snapshot
from runtap_consumers.store.read.unmatched import read_unpriced, stream_unpriced_hours
from runtap_consumers.units import HOUR_NS


class _Unpriced(TypedDict):
    provider: str | None
    model: str | None
    unpriced_calls: int
    impossible_calls: int
    repriceable_calls: int
    input_tokens: int
    output_tokens: int
    is_known: bool
    nearest: list[str]


class ModelWithoutPrice(_Unpriced):
    """A model with calls that have no price. `impossible_calls`: those whose parts exceed their totals; `nearest`:
    models with a price that are called alike; `advice`: what to do.
    """

    advice: str


def list_unpriced(snapshot: Snapshot, prices: PriceTable) -> list[ModelWithoutPrice]:
    """Models with calls that have usage and no price, the most called first. `repriceable_calls`: those that
    `runtap reprice` would price with these prices, by the same rule.
    """
    repriceable = Counter[tuple[str, str]]()
    for row in stream_unpriced_hours(snapshot):
        terms = find_terms(prices, row, row, (row["bucket_ns"], row["bucket_ns"] + HOUR_NS))
        if terms is not None and terms.rates is not None:
            repriceable[row["provider"], row["model"]] += row["unpriced_calls"]
    found: list[_Unpriced] = [
        {
            "provider": row.provider or None,
            "model": row.model or None,
            "unpriced_calls": row.calls,
            "impossible_calls": row.impossible_calls,
            "repriceable_calls": repriceable[row.provider, row.model],
            "input_tokens": row.input_tokens,
            "output_tokens": row.output_tokens,
            "is_known": prices.sellers.find(row.provider, row.model) is not None,
            "nearest": prices.sellers.nearest(row.provider, row.model),
        }
        for row in read_unpriced(snapshot)
    ]
    return [{**row, "advice": _advise(row)} for row in found]


def _advise(row: _Unpriced) -> str:
    if row["repriceable_calls"]:
        return f"runtap reprice prices {row['repriceable_calls']:,} of them"
    if row["impossible_calls"] == row["unpriced_calls"]:
        return "their parts exceed their totals: see the single runs"
    provider = row["provider"] or ""
    if provider.startswith(UNKNOWN_SELLER):
        host = provider.removeprefix(UNKNOWN_SELLER)
        return f"nobody knows who sells at {host}: say it by [[seller]] in RUNTAP_PRICES"
    if provider == "openrouter":
        return "its answers had no bill (LangChain drops that of streams), and what it lists is not what it bills"
    if row["is_known"]:
        return "no price for what they used: see the price classes of single runs"
    return f"nearest known: {', '.join(row['nearest']) or 'none'}"
