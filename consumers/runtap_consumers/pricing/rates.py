"""The prices of one model at one moment, as integers a unit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import copy
from datetime import datetime, time, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import NamedTuple

from genai_prices.types import ModelInfo, ModelPrice, PriceVariant, Provider, TieredPrices, TimeOfDateConstraint

from runtap_consumers.pricing.sellers import Sold
from runtap_consumers.units import PICODOLLARS

_WHOLE = Decimal(1)
_HALF = Decimal("0.5")
_TIER_CONTEXTS = {
    "batch": {"processing": "batch"},
    "fast": {"service_tier": "fast", "speed": "fast"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
}
KNOWN_TIERS = tuple(_TIER_CONTEXTS)
# Not OpenAI's batch: cached tokens of its older models cost there what they always cost.
_HALF_PRICE_TIERS = frozenset({("openai", "flex"), ("anthropic", "batch")})
_FREE = re.compile(r"\bfree\b", re.IGNORECASE)

_COUNTED_PRICES = frozenset(
    {
        "input_mtok",
        "output_mtok",
        "cache_read_mtok",
        "cache_write_mtok",
        "cache_write_5m_mtok",
        "cache_write_1h_mtok",
        "input_audio_mtok",
        "input_image_mtok",
        "output_audio_mtok",
        "output_reasoning_mtok",
        "requests_kcount",
        "web_searches_kcount",
    }
)
_UNCOUNTED_TOOL_PRICES = frozenset({"storage_searches_kcount", "social_searches_kcount", "code_executions_kcount"})
# Prices of cached audio or images: usage does not say which cached tokens those are, so such calls get no price.
_CACHED_MODALITY_PRICE = re.compile(r"cache_(audio|image)_")


class Rates(NamedTuple):
    """Picodollars a unit. Parts are differences from the price of the total that contains them; `None`: unknown."""

    request: int
    input: int
    output: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int
    input_audio: int | None
    input_image: int
    reasoning: int
    output_audio: int | None
    web_search: int | None


_FREE_OF_CHARGE = Rates(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


class _Prices(NamedTuple):
    """Prices, by what those of tokens are to be multiplied, and what is left of everything after a discount."""

    prices: ModelPrice
    token_factor: Decimal
    share: Decimal


def rates_by_size(sold: Sold, tier: str, moment: datetime, smallest_tokens: Sequence[int]) -> list[Rates | None]:
    """A model's rates in that tier (empty: standard) at that moment, for calls from each of these input sizes on."""
    found = _prices_at(sold, tier, moment)
    return [found and _quantised(sold, found, input_tokens) for input_tokens in smallest_tokens]


def size_thresholds(providers: Sequence[Provider]) -> set[int]:
    """Every number of input tokens beyond which some model has another price."""
    prices = (prices for provider in providers for model in provider.models for prices in _all_prices(model))
    tiered = (price for each in prices for price in vars(each).values() if isinstance(price, TieredPrices))
    return {tier.start for price in tiered for tier in price.tiers}


def time_constraints(model: ModelInfo) -> list[TimeOfDateConstraint]:
    """The times of day at which the model has a price of its own."""
    conditionals = [] if isinstance(model.prices, ModelPrice) else model.prices
    constraints = [each.constraint for each in (*conditionals, *(model.price_variants or ()))]
    return [each for each in constraints if isinstance(each, TimeOfDateConstraint)]


def minute_of_day(edge: time) -> int:
    """The UTC minute at which a window begins or ends; times without a zone are UTC."""
    offset = edge.utcoffset() or timedelta()
    return (edge.hour * 60 + edge.minute - offset // timedelta(minutes=1)) % 1_440


def _all_prices(model: ModelInfo) -> Iterator[ModelPrice]:
    if isinstance(model.prices, ModelPrice):
        yield model.prices
    else:
        yield from (conditional.prices for conditional in model.prices)
    yield from (variant.prices for variant in model.price_variants or ())


def _prices_at(sold: Sold, tier: str, moment: datetime) -> _Prices | None:
    day = moment.date()
    share = sold.terms.share_at(day)
    own = sold.terms.price_at(tier, day)
    if own is not None:
        return _Prices(own, _WHOLE, share)
    own_standard = sold.terms.price_at("", day) if tier else None
    standard = own_standard or (_listed(sold, sold.model, moment) if sold.model else None)
    if standard is None:
        return None
    if not tier:
        return _Prices(standard, _WHOLE, share)
    factor = sold.terms.tier_factor_at(tier, day)
    if factor is not None:
        return _Prices(standard, factor, share)
    if sold.model is None or sold.tiers_of is None:
        return None
    context = _TIER_CONTEXTS.get(tier, {})
    variants = sold.model.price_variants or ()
    # The table's tiers are no multiple of a standard price that the owner set.
    if own_standard is None and any(_applies(variant, context, moment) for variant in variants):
        return _Prices(_listed(sold, sold.model, moment, context), _WHOLE, share)
    return _Prices(standard, _HALF, share) if (sold.tiers_of, tier) in _HALF_PRICE_TIERS else None


def _listed(sold: Sold, model: ModelInfo, moment: datetime, context: dict[str, str] | None = None) -> ModelPrice:
    prices = model.get_prices(moment, context)
    if sold.maker is not sold.provider:
        # A reseller's searches are its own: Azure's are Bing's, at other prices.
        prices = copy(prices)
        vars(prices).pop("web_searches_kcount", None)
    return prices


def _applies(variant: PriceVariant, context: dict[str, str], moment: datetime) -> bool:
    is_wanted = all(context.get(key) == value for key, value in variant.when.items())
    return is_wanted and (variant.constraint is None or variant.constraint.active(moment))


def _quantised(sold: Sold, found: _Prices, input_tokens: int) -> Rates | None:
    prices, name = found.prices, sold.model.id if sold.model else sold.name
    priced = {key for key, price in vars(prices).items() if price is not None}
    if not priced:
        # `…:free` is how a router calls one of its ways to sell a model, which others' tables have taken over.
        title = (sold.model.name if sold.model else None) or ""
        return _FREE_OF_CHARGE if _FREE.search(title) and not name.endswith(":free") else None
    uncounted = priced - _COUNTED_PRICES - _UNCOUNTED_TOOL_PRICES
    if "input_mtok" not in priced or any(not _CACHED_MODALITY_PRICE.match(key) for key in uncounted):
        return None

    def per_token(key: str, otherwise: int) -> int:
        price = _dollars(prices, key, input_tokens)
        return otherwise if price is None else _quantise(price * found.token_factor * found.share, 10**6)

    def per_count(key: str) -> int | None:
        price = _dollars(prices, key, input_tokens)
        return None if price is None else _quantise(price * found.share, 10**3)

    whole_input = per_token("input_mtok", 0)
    whole_output = per_token("output_mtok", 0)
    write = per_token("cache_write_mtok", whole_input)
    is_claude_with_one_write_price = "claude" in name and "cache_write_mtok" in priced
    write_1h = per_token("cache_write_1h_mtok", 2 * whole_input if is_claude_with_one_write_price else write)
    is_input_audio_unknown = "audio" in name and "input_audio_mtok" not in priced
    request = per_count("requests_kcount")
    return Rates(
        request=request or 0,
        input=whole_input,
        output=whole_output,
        cache_read=per_token("cache_read_mtok", whole_input) - whole_input,
        cache_write_5m=per_token("cache_write_5m_mtok", write) - whole_input,
        cache_write_1h=write_1h - whole_input,
        input_audio=None if is_input_audio_unknown else per_token("input_audio_mtok", whole_input) - whole_input,
        input_image=per_token("input_image_mtok", whole_input) - whole_input,
        reasoning=per_token("output_reasoning_mtok", whole_output) - whole_output,
        output_audio=per_token("output_audio_mtok", 0) - whole_output if "output_audio_mtok" in priced else None,
        web_search=per_count("web_searches_kcount") if request is None else per_count("web_searches_kcount") or 0,
    )


def _dollars(prices: ModelPrice, key: str, input_tokens: int) -> Decimal | None:
    price: Decimal | TieredPrices | None = getattr(prices, key)
    if isinstance(price, TieredPrices):
        # The whole call pays the tier that its input reaches, not only the tokens beyond the threshold.
        reached = [tier.price for tier in price.tiers if input_tokens > tier.start]
        return reached[-1] if reached else price.base
    return price


def _quantise(dollars: Decimal, units: int) -> int:
    return int((dollars * (PICODOLLARS // units)).to_integral_value(ROUND_HALF_EVEN))
