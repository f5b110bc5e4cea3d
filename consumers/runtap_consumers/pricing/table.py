"""The table of prices, and the hot path that prices one call."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import NamedTuple

from genai_prices.types import Provider

from runtap_consumers.pricing.corrections import correct, load_corrections
from runtap_consumers.pricing.overrides import Overrides
from runtap_consumers.pricing.rates import Rates, minute_of_day, rates_by_size, size_thresholds, time_constraints
from runtap_consumers.pricing.sellers import Sellers, Sold
from runtap_consumers.projections.batch import Priced
from runtap_consumers.units import DAY_NS, MINUTE_NS
from runtap_schemas import Usage

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Goes into the hash of the price set: raise it with every change of this package that changes a cost.
_RULES_VERSION = 3
# Names come from the wire, so what is remembered of them must be bounded. A plan holds 1 to 4 kB.
_MAX_REMEMBERED = 4_096
# A class without a size bucket means up to so many input tokens, whatever thresholds a later table has.
UNLABELLED_SIZE_TOKENS = 32_000
# Bounds the price class, which is a key column; the tiers that are known are shorter.
_MAX_TIER_LENGTH = 16
_REASONING_MODELS = re.compile(r"o\d|gpt-[5-9]")
_STANDARD_TIERS = frozenset({"auto", "default", "standard", "on_demand", "on-demand"})


class Plan(NamedTuple):
    """The prices of one model, tier and day: price class and rates, by window of the day, then by size bucket."""

    window_starts_ns: tuple[int, ...]
    cells: tuple[tuple[tuple[str, Rates | None], ...], ...]


class PriceTable:
    """Prices of all known models. Reads no clock and does no I/O; for one thread at a time.

    `price_set` names the data and the rules that made the figures, in at most 64 characters. `sizes` are the numbers of
    input tokens beyond which some price changes.
    """

    price_set: str
    sizes: list[int]

    def __init__(self, providers: Sequence[Provider], source: str, overrides: Overrides | None = None) -> None:
        """Args:
        providers: As genai-prices declares them; not to be changed afterwards.
        source: Name and version of the data, the beginning of `price_set`.
        overrides: The owner's own prices.
        """
        overrides = overrides or Overrides()
        own = "" if overrides.is_empty else f"\n{overrides!r}"
        digest = hashlib.sha256(f"{_RULES_VERSION}\n{providers!r}{own}".encode()).hexdigest()
        self.price_set = f"{source[:51]}{'+own' if own else ''}-{digest[:8]}"
        self.sellers = Sellers(providers, overrides)
        self.sizes = sorted({UNLABELLED_SIZE_TOKENS} | size_thresholds(providers) | overrides.sizes())
        self._size_labels = _size_labels(self.sizes)
        self._plans: dict[tuple[str | None, str | None, str | None, int], Plan] = {}
        self._sold: dict[tuple[str | None, str | None], Sold | None] = {}
        self._sellers_at: dict[tuple[str | None, str], str | None] = {}

    @classmethod
    def load(cls) -> PriceTable:
        """The table of the installed genai-prices, corrected."""
        # 30,000 lines, which only commands that price need to load.
        from genai_prices.data import providers

        return cls(correct(providers, load_corrections()), f"genai-prices-{version('genai-prices')}")

    def seller_at(self, provider: str | None, host: str) -> str | None:
        """Who is paid for a call of a provider's client at a host (`Sellers.seller_at`)."""
        key = provider, host
        if key not in self._sellers_at:
            if len(self._sellers_at) >= _MAX_REMEMBERED:
                self._sellers_at.clear()
            self._sellers_at[key] = self.sellers.seller_at(provider, host)
        return self._sellers_at[key]

    def price(
        self,
        provider: str | None,
        model: str | None,
        usage: Usage,
        at_ns: int,
        service_tier: str | None = None,
        *,
        marks: Collection[str] = (),
    ) -> Priced:
        """Price one call.

        Args:
            provider: LangChain's or genai-prices' name for it; where it is unknown the model's name decides.
            model: The answering model.
            usage: Without `input_tokens` or `output_tokens` there is no cost.
            at_ns: Instant of the call, Unix nanoseconds.
            service_tier: The tier that the call was answered in, as the provider names it.
            marks: `requested` where the answer named no model, so that it is the one asked for; `preview` where
                the search was OpenAI's `web_search_preview`. They become part of the price class.
        """
        key = (provider, model, service_tier, at_ns // DAY_NS)
        starts, cells = self._plans.get(key) or self._remember_plan(*key)
        by_size = cells[bisect_right(starts, at_ns % DAY_NS) if starts else 0]
        input_tokens = usage.input_tokens
        output_tokens = usage.output_tokens
        if input_tokens is None or output_tokens is None:
            return Priced(_labelled(by_size[0][0], "unmeasured"), None)
        price_class, rates = by_size[bisect_left(self.sizes, input_tokens)]
        if marks:
            for mark in marks:
                price_class = _labelled(price_class, mark)
            if not self.is_priceable(provider, model, marks):
                return Priced(price_class, None)

        cache_read = usage.cache_read_tokens or 0
        cache_write_5m = usage.cache_write_5m_tokens or 0
        cache_write_1h = usage.cache_write_1h_tokens or 0
        input_audio = usage.input_audio_tokens or 0
        modal = input_audio + (usage.input_image_tokens or 0)
        reasoning = usage.reasoning_tokens or 0
        output_audio = usage.output_audio_tokens or 0
        web_searches = usage.web_searches
        cached = cache_read + cache_write_5m + cache_write_1h
        # Tokens may be both cached and audio or image, but not both reasoning and audio.
        if cached > input_tokens or modal > input_tokens or reasoning + output_audio > output_tokens:
            return Priced(_labelled(price_class, "impossible"), None)
        if web_searches:
            price_class = _labelled(price_class, "searched")
        if input_audio or output_audio:
            price_class = _labelled(price_class, "audio")
        if cached and modal:
            price_class = _labelled(price_class, "mixed")
        if rates is None:
            return Priced(price_class, None)

        cost = rates.request + input_tokens * rates.input + output_tokens * rates.output
        if cached:
            cost += cache_read * rates.cache_read
            cost += cache_write_5m * rates.cache_write_5m + cache_write_1h * rates.cache_write_1h
        if reasoning:
            cost += reasoning * rates.reasoning
        if web_searches and not (modal or output_audio):
            rate = rates.web_search
            return Priced(price_class, None if rate is None else cost + web_searches * rate)
        if modal or output_audio:
            extras = _cost_of_extras(usage, rates)
            return Priced(price_class, None if extras is None else cost + extras)
        return Priced(price_class, cost)

    def is_priceable(self, provider: str | None, model: str | None, marks: Collection[str]) -> bool:
        """Whether what these marks say leaves a call its price."""
        sold = self._remember_sold(provider, model)
        if sold is None or ("requested" in marks and not sold.is_listed_by_its_seller):
            return False
        # Of others, each preview search costs 2.5 times as much, and what it found, which the usage may count, nothing:
        # platform.openai.com, Pricing, Built-in tools.
        return "preview" not in marks or _REASONING_MODELS.match(sold.name) is not None

    def plan(self, provider: str | None, model: str | None, service_tier: str | None, day: int) -> Plan:
        """All prices of a model, in one tier, on one day since the epoch (UTC). Size buckets end at `sizes`."""
        key = (provider, model, service_tier, day)
        return self._plans.get(key) or self._remember_plan(*key)

    def _remember_plan(self, provider: str | None, model: str | None, service_tier: str | None, day: int) -> Plan:
        sold = self._remember_sold(provider, model)
        if len(self._plans) >= _MAX_REMEMBERED:
            self._plans.clear()
        tier = (service_tier or "").strip().lower()
        plan = self._make_plan(sold, "" if tier in _STANDARD_TIERS else tier, day)
        self._plans[provider, model, service_tier, day] = plan
        return plan

    def _remember_sold(self, provider: str | None, model: str | None) -> Sold | None:
        # Finding a model takes up to milliseconds, so it is remembered beyond its day.
        if (provider, model) not in self._sold:
            if len(self._sold) >= _MAX_REMEMBERED:
                self._sold.clear()
            self._sold[provider, model] = self.sellers.find(provider, model)
        return self._sold[provider, model]

    def _make_plan(self, sold: Sold | None, tier: str, day: int) -> Plan:
        midnight = _EPOCH + timedelta(days=day)
        constraints = time_constraints(sold.model) if sold and sold.model else []
        starts = sorted({minute_of_day(edge) for each in constraints for edge in (each.start_time, each.end_time)})
        smallest_tokens = [0, *(size + 1 for size in self.sizes)]
        unknown: list[Rates | None] = [None] * len(smallest_tokens)
        windows = []
        for number, minute in enumerate([0, *starts]):
            moment = midnight + timedelta(minutes=minute)
            window = ""
            if starts:
                # Calls outside of the dearer hours get a window, too, or `reprice` could not price an hour with both.
                # The first and the last stretch of the day are one window around midnight.
                window = f"utc{_clock(starts[number - 1])}-{_clock(starts[number % len(starts)])}"
            classes = ["/".join(filter(None, (tier[:_MAX_TIER_LENGTH], size, window))) for size in self._size_labels]
            rates = rates_by_size(sold, tier, moment, smallest_tokens) if sold else unknown
            windows.append(tuple(zip([each or "standard" for each in classes], rates, strict=True)))
        return Plan(tuple(minute * MINUTE_NS for minute in starts), tuple(windows))


def _cost_of_extras(usage: Usage, rates: Rates) -> int | None:
    """What audio, image and web searches add; `None`: unknown."""
    image = (usage.input_image_tokens or 0) * rates.input_image
    cost = image
    for count, rate in (
        (usage.input_audio_tokens, rates.input_audio),
        (usage.output_audio_tokens, rates.output_audio),
        (usage.web_searches, rates.web_search),
    ):
        if count and rate is None:
            return None
        cost += (count or 0) * (rate or 0)
    is_input_apart = image or (usage.input_audio_tokens and rates.input_audio)
    is_cache_apart = (
        (usage.cache_read_tokens and rates.cache_read)
        or (usage.cache_write_5m_tokens and rates.cache_write_5m)
        or (usage.cache_write_1h_tokens and rates.cache_write_1h)
    )
    # Which of the audio or image tokens came from the cache, at yet another price, is not reported.
    return None if is_input_apart and is_cache_apart else cost


def _size_labels(sizes: list[int]) -> list[str]:
    bounds = zip([0, *sizes], [*map(str, sizes), ""], strict=True)
    labels = [f"{more_than}-{up_to}" for more_than, up_to in bounds]
    return ["" if label == f"0-{UNLABELLED_SIZE_TOKENS}" else label for label in labels]


def _labelled(price_class: str, label: str) -> str:
    return label if price_class == "standard" else f"{price_class}/{label}"


def _clock(minute: int) -> str:
    return f"{minute // 60:02}{minute % 60:02}"
