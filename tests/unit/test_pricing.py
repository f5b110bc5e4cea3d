"""Prices mean what genai-prices means by them, in exact integers, and what is not known is not zero."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import genai_prices
import pytest
from genai_prices.data import providers
from genai_prices.types import (
    ModelInfo,
    ModelPrice,
    PriceCalculation,
    Provider,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runtap_consumers.pricing import Priced, PriceTable, table
from runtap_consumers.units import DAY_NS
from runtap_schemas import Usage

TABLE = PriceTable.load()
# Without runtap's corrections: what genai-prices itself says.
LISTED = PriceTable(providers, "genai")
MODELS = [(provider.id, model.id) for provider in providers for model in provider.models]
MAKERS = {"anthropic", "deepseek", "google", "mistral", "openai", "x-ai"}
# What genai-prices can bill and `Usage` does not count.
UNCOUNTED = (
    "output_image_mtok",
    "input_video_mtok",
    "output_video_mtok",
    "output_citation_mtok",
    "audio_hours",
    "input_audio_hours",
    "input_mchars",
    "input_document_kpages",
    "input_text_messages_kcount",
)


def instant(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9


NOW = instant("2026-11-20T12:00:00")
EARLIER = instant("2026-09-20T12:00:00")


def used(input_tokens: int | None = 1_000, output_tokens: int | None = 100, **parts: int) -> Usage:
    return Usage(input_tokens=input_tokens, output_tokens=output_tokens, **parts)


def cost(
    provider: str | None, model: str | None, usage: Usage, at_ns: int = NOW, tier: str | None = None
) -> int | None:
    return TABLE.price(provider, model, usage, at_ns, tier).cost_picodollars


def reference(provider_id: str, model: str, usage: Usage, at_ns: int) -> PriceCalculation:
    writes = (usage.cache_write_5m_tokens or 0) + (usage.cache_write_1h_tokens or 0)
    counted = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=writes,
        cache_write_5m_tokens=usage.cache_write_5m_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        input_audio_tokens=usage.input_audio_tokens,
        input_image_tokens=usage.input_image_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
        output_audio_tokens=usage.output_audio_tokens,
        web_searches=usage.web_searches,
    )
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_ns // 1_000)
    return genai_prices.calc_price(counted, model, provider_id=provider_id, genai_request_timestamp=moment)


def numbers(prices: ModelPrice) -> Iterator[Decimal]:
    for price in vars(prices).values():
        if isinstance(price, TieredPrices):
            yield from (price.base, *(tier.price for tier in price.tiers))
        elif price is not None:
            yield price


def assert_equals_reference(provider_id: str, model: str, usage: Usage, at_ns: int) -> None:
    """Equal to a picodollar, and half of one a token where a price has more than six decimals a million tokens."""
    priced = LISTED.price(provider_id, model, usage, at_ns).cost_picodollars
    if provider_id == "openrouter":
        # What it bills stands in its answers, and is not what it lists.
        assert priced is None
        return
    try:
        expected = reference(provider_id, model, usage, at_ns)
    except ValueError:
        # Parts beyond their total, or cached beside audio where both have a price.
        assert priced is None
        return
    prices = expected.model_price
    if priced is None:
        is_free_or_unknown = not list(numbers(prices))
        is_uncounted = any(getattr(prices, key) is not None for key in UNCOUNTED)
        is_search_unknown = bool(usage.web_searches) and prices.web_searches_kcount is None
        is_unknown = is_free_or_unknown or is_uncounted or is_search_unknown or is_audio_unknown(expected, usage)
        assert is_unknown or has_impossible_parts(usage)
        return
    difference = abs(priced - expected.total_price * 10**12)
    decimals = max((-int(number.as_tuple().exponent) for number in numbers(prices)), default=0)
    tokens = (usage.input_tokens or 0) + (usage.output_tokens or 0)
    assert difference <= (Decimal(tokens) / 2 if decimals > 6 else 0)


def has_impossible_parts(usage: Usage) -> bool:
    cached = sum(
        part or 0 for part in (usage.cache_read_tokens, usage.cache_write_5m_tokens, usage.cache_write_1h_tokens)
    )
    modal = (usage.input_audio_tokens or 0) + (usage.input_image_tokens or 0)
    outputs = (usage.reasoning_tokens or 0) + (usage.output_audio_tokens or 0)
    return max(cached, modal) > (usage.input_tokens or 0) or outputs > (usage.output_tokens or 0)


def is_audio_unknown(expected: PriceCalculation, usage: Usage) -> bool:
    prices = expected.model_price
    is_output_unknown = bool(usage.output_audio_tokens) and prices.output_audio_mtok is None
    is_input_unknown = bool(usage.input_audio_tokens) and prices.input_audio_mtok is None
    return is_output_unknown or (is_input_unknown and "audio" in expected.model.id)


def has_one_write_price(prices: ModelPrice) -> bool:
    return prices.cache_write_mtok is not None and prices.cache_write_1h_mtok is None


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """Mostly possible ones: cached parts, audio and image, reasoning, and one of four with a part beyond its total."""
    sizes = st.one_of(
        st.integers(0, 2_000), st.integers(0, 10**9), st.sampled_from([0, 32_000, 200_000, 200_001, 272_001])
    )
    input_tokens, output_tokens = draw(sizes), draw(sizes)
    stretch = 2 if draw(st.integers(0, 3)) == 0 else 1

    def part(total: int, share: int) -> int | None:
        return draw(st.one_of(st.none(), st.just(0), st.integers(0, total * stretch // share)))

    is_text = draw(st.booleans())
    is_uncached = draw(st.booleans())
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cache_read_tokens=None if is_uncached else part(input_tokens, 3),
        cache_write_5m_tokens=None if is_uncached else part(input_tokens, 3),
        cache_write_1h_tokens=None if is_uncached else part(input_tokens, 3),
        input_audio_tokens=None if is_text else part(input_tokens, 2),
        input_image_tokens=None if is_text else part(input_tokens, 2),
        reasoning_tokens=part(output_tokens, 1),
        output_audio_tokens=None if is_text else part(output_tokens, 1),
        web_searches=draw(st.one_of(st.none(), st.integers(0, 20))),
    )


@given(
    model=st.sampled_from(MODELS) | st.sampled_from([each for each in MODELS if each[0] in MAKERS]),
    usage=usages(),
    at_ns=st.integers(instant("2023-01-01"), instant("2027-12-31")),
)
@settings(max_examples=400, deadline=None)
def test_cost_equals_that_of_genai_prices(model: tuple[str, str], usage: Usage, at_ns: int) -> None:
    try:
        prices = reference(*model, used(), at_ns).model_price
    except LookupError:
        assume(False)
    assume(not ("claude" in model[1] and usage.cache_write_1h_tokens and has_one_write_price(prices)))
    assert_equals_reference(*model, usage, at_ns)


def test_every_model_of_the_table_costs_what_genai_prices_says() -> None:
    usage = used(250_000, 5_000, cache_read_tokens=40_000, cache_write_5m_tokens=3_000, reasoning_tokens=1_000)
    seen = 0
    for provider_id, model in MODELS:
        try:
            assert_equals_reference(provider_id, model, usage, NOW)
        except LookupError:
            # A few ids of the table do not match their own pattern.
            continue
        seen += 1
    assert seen > 0.95 * len(MODELS)


def edges_of_time(model: ModelInfo) -> Iterator[datetime]:
    conditionals = [] if isinstance(model.prices, ModelPrice) else model.prices
    for conditional in conditionals:
        constraint = conditional.constraint
        if isinstance(constraint, StartDateConstraint):
            yield datetime.combine(constraint.start_date, datetime.min.time(), UTC)
        elif isinstance(constraint, TimeOfDateConstraint):
            for edge in (constraint.start_time, constraint.end_time):
                yield datetime.combine(datetime(2026, 11, 20, tzinfo=UTC), edge)


def test_prices_change_at_the_very_second_at_which_those_of_genai_prices_do() -> None:
    edges = 0
    for provider in providers:
        if provider.id == "openrouter":
            continue
        for model in provider.models:
            for edge in edges_of_time(model):
                at_ns = int(edge.timestamp()) * 10**9
                try:
                    for moment in (at_ns - 1_000, at_ns):
                        assert_equals_reference(provider.id, model.id, used(cache_read_tokens=10), moment)
                except LookupError:
                    # Some ids of the table do not match their own pattern.
                    continue
                edges += 1
    assert edges > 50


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-4o-mini"),
        ("openai", "gpt-4o-mini-2024-07-18"),
        ("openai", " GPT-4o-mini "),
        ("openai", "openai/gpt-4o-mini"),
        (None, "gpt-4o-mini-2024-07-18"),
        ("my_gateway", "gpt-4o-mini"),
        ("azure", "gpt-4o-mini-2024-07-18"),
        ("azure_openai", "gpt-4o-mini"),
        ("openai", "azure/gpt-4o-mini"),
    ],
)
def test_names_of_one_model_have_one_price(provider: str | None, model: str) -> None:
    assert TABLE.price(provider, model, used(), NOW) == Priced("standard", 1_000 * 150_000 + 100 * 600_000)


@pytest.mark.parametrize(
    ("provider", "model", "provider_id", "reference_model"),
    [
        ("amazon_bedrock", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "aws", None),
        ("bedrock", "anthropic.claude-3-haiku-20240307-v1:0", "aws", None),
        ("google_genai", "models/gemini-2.5-flash", "google", "gemini-2.5-flash"),
        ("google_vertexai", "publishers/google/models/gemini-2.5-pro", "google", "gemini-2.5-pro"),
        ("google_vertexai", "claude-sonnet-4-5@20250929", "google", None),
        ("anthropic", "claude-sonnet-4-5-20250929", "anthropic", None),
        ("mistralai", "mistral-large-latest", "mistral", None),
        ("groq", "llama-3.3-70b-versatile", "groq", None),
        ("xai", "grok-4", "x-ai", None),
        ("deepseek", "deepseek-chat", "deepseek", None),
        ("openai", "deepseek-chat", "deepseek", None),
        ("together", "meta-llama/Llama-3.3-70B-Instruct-Turbo", "together", None),
        ("openai", "gpt-5.2-20251211", "openai", "gpt-5.2-2025-12-11"),
    ],
)
def test_langchain_names_reach_the_provider_who_bills(
    provider: str, model: str, provider_id: str, reference_model: str | None
) -> None:
    expected = reference(provider_id, reference_model or model, used(), NOW).total_price * 10**12
    assert expected > 0
    assert cost(provider, model, used()) == expected


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", None),
        ("openai", ""),
        (None, None),
        ("openai", "gpt-unheard-of"),
        ("azure", "my-deployment"),
        ("groq", "gpt-4o"),
        ("my_gateway", "house-model"),
        ("ollama", "deepseek-r1"),
        ("openai", "deepseek-r1:8b"),
        ("openai", "mistralai/mistral-small-latest"),
        ("huggingface", "gpt-4o"),
        ("openai-codex", "gpt-5"),
    ],
)
def test_unknown_price_is_none_and_never_zero(provider: str | None, model: str | None) -> None:
    assert TABLE.price(provider, model, used(), NOW) == Priced("standard", None)


def test_free_model_costs_zero_and_a_model_without_a_price_nothing_known() -> None:
    assert cost("google", "gemma-3", used(web_searches=1)) == 0
    # A router's name for one of its ways to sell it, which others' tables have taken over.
    assert cost("mistral", "mistral-nemo:free", used()) is None
    assert cost("cerebras", "qwen-3-coder-480b", used()) is None


@pytest.mark.parametrize(
    ("provider", "model"),
    [("google", "gemini-2.5-flash-image"), ("openai", "whisper-1"), ("mistral", "voxtral-small-24b-2507")],
)
def test_model_that_bills_what_usage_does_not_count_has_no_price(provider: str, model: str) -> None:
    assert reference(provider, model, used(), NOW).model.id
    assert cost(provider, model, used()) is None


def test_parts_are_priced_within_their_total() -> None:
    usage = used(1_000, 200, cache_read_tokens=600, reasoning_tokens=150)
    assert cost("openai", "gpt-5", usage) == 400 * 1_250_000 + 600 * 125_000 + 200 * 10_000_000


def test_audio_is_priced_as_audio_or_not_at_all() -> None:
    usage = used(100, 50, input_audio_tokens=60, output_audio_tokens=20)
    expected = 40 * 2_500_000 + 60 * 32_000_000 + 30 * 10_000_000 + 20 * 64_000_000
    assert TABLE.price("openai", "gpt-audio", usage, NOW) == Priced("audio", expected)
    # The table has only text prices for these two.
    assert TABLE.price("openai", "gpt-4o-audio-preview", usage, NOW) == Priced("audio", None)
    assert cost("google", "gemini-2.5-pro", used(100, 50, output_audio_tokens=20)) is None
    # Audio costs there what text costs.
    heard = used(100, 50, input_audio_tokens=60)
    assert cost("google", "gemini-2.5-pro", heard) == cost("google", "gemini-2.5-pro", used(100, 50))


def test_cache_writes_of_an_hour_cost_twice_the_input() -> None:
    usage = used(1_000, 0, cache_read_tokens=100, cache_write_5m_tokens=200, cache_write_1h_tokens=300)
    expected = 400 * 3_000_000 + 100 * 300_000 + 200 * 3_750_000 + 300 * 6_000_000
    assert cost("anthropic", "claude-sonnet-4-5-20250929", usage) == expected


@pytest.mark.parametrize(
    "usage",
    [
        used(10, 10, cache_read_tokens=11),
        used(10, 10, cache_read_tokens=5, cache_write_5m_tokens=3, cache_write_1h_tokens=3),
        used(10, 10, input_audio_tokens=6, input_image_tokens=5),
        used(10, 10, reasoning_tokens=11),
        used(10, 10, output_audio_tokens=11),
        used(10, 10, reasoning_tokens=6, output_audio_tokens=5),
    ],
)
def test_parts_beyond_their_total_have_no_cost_and_a_class_of_their_own(usage: Usage) -> None:
    assert TABLE.price("openai", "gpt-4o", usage, NOW) == Priced("impossible", None)


@pytest.mark.parametrize("usage", [Usage(), used(None, 5), used(5, None)])
def test_usage_without_a_total_has_no_cost(usage: Usage) -> None:
    assert TABLE.price("openai", "gpt-4o", usage, NOW) == Priced("unmeasured", None)


def test_audio_beside_cached_tokens_has_no_cost_only_where_both_have_a_price() -> None:
    usage = used(1_000, 10, cache_read_tokens=500, input_audio_tokens=400)
    assert TABLE.price("google_genai", "gemini-2.5-flash", usage, NOW) == Priced("audio/mixed", None)
    text_only = cost("openai", "gpt-4o", used(1_000, 10, cache_read_tokens=500))
    assert TABLE.price("openai", "gpt-4o", usage, NOW) == Priced("audio/mixed", text_only)


def test_a_whole_call_pays_the_tier_that_its_input_reaches() -> None:
    at_threshold = TABLE.price("google_genai", "gemini-2.5-pro", used(200_000, 10), NOW)
    beyond = TABLE.price("google_genai", "gemini-2.5-pro", used(200_001, 10), NOW)
    assert at_threshold == Priced("199999-200000", 200_000 * 1_250_000 + 10 * 10_000_000)
    assert beyond == Priced("200000-256000", 200_001 * 2_500_000 + 10 * 15_000_000)


def test_size_buckets_are_those_of_all_models() -> None:
    sizes = [1, 32_000, 32_001, 100_001, 128_001, 199_999, 200_000, 200_001, 256_001, 272_001, 512_001, 524_289]
    classes = [TABLE.price("openai", "gpt-4o", used(size), NOW).price_class for size in sizes]
    assert classes == [
        "standard",
        "standard",
        "32000-100000",
        "100000-128000",
        "128000-199999",
        "128000-199999",
        "199999-200000",
        "200000-256000",
        "256000-272000",
        "272000-512000",
        "512000-524288",
        "524288-",
    ]


def test_unlabelled_size_means_the_same_beside_a_lower_threshold() -> None:
    low = TieredPrices(base=Decimal(1), tiers=[])
    low.tiers.append(genai_prices.types.Tier(start=8_000, price=Decimal(2)))
    prices = ModelPrice(input_mtok=low, output_mtok=Decimal(1))
    other = PriceTable([one_model("acme-1", prices)], "acme-1.0")
    classes = [other.price("acme", "acme-1", used(size), NOW).price_class for size in (8_000, 8_001, 32_001)]
    assert classes == ["0-8000", "8000-32000", "32000-"]


def one_model(model: str, prices: ModelPrice) -> Provider:
    match = genai_prices.types.ClauseEquals(equals=model)
    info = ModelInfo(id=model, match=match, prices=prices)
    return Provider(id="acme", name="Acme", api_pattern="acme", models=[info])


def test_time_of_day_has_a_window_only_where_the_model_has_a_price_for_it() -> None:
    night, day, gap = (instant(f"2026-11-20T{clock}:00") for clock in ("03:59", "04:00", "06:00"))
    assert TABLE.price("deepseek", "deepseek-v4-pro", used(), night).price_class == "utc0100-0400"
    assert TABLE.price("deepseek", "deepseek-v4-pro", used(), day).price_class == "utc0400-0600"
    assert TABLE.price("deepseek", "deepseek-v4-pro", used(), gap).price_class == "utc0600-1000"
    assert cost("deepseek", "deepseek-v4-pro", used(), night) == 1_000 * 1_320_000 + 100 * 3_960_000
    assert cost("deepseek", "deepseek-v4-pro", used(), day) == 1_000 * 660_000 + 100 * 1_980_000
    assert TABLE.price("openai", "gpt-4o", used(), night).price_class == "standard"


@pytest.mark.parametrize("tier", [None, "", "default", "standard", "auto", "on_demand"])
def test_ordinary_tiers_are_standard(tier: str | None) -> None:
    assert TABLE.price("openai", "gpt-5", used(), NOW, tier) == Priced("standard", 1_000 * 1_250_000 + 100 * 10_000_000)


@pytest.mark.parametrize(
    ("provider", "model", "at_ns", "tier", "expected"),
    [
        ("openai", "gpt-5", NOW, "flex", 1_000 * 625_000 + 100 * 5_000_000),
        # The table has flex prices from October 2026 on only.
        ("openai", "gpt-5", EARLIER, "flex", 1_000 * 625_000 + 100 * 5_000_000),
        ("openai", "gpt-4.1", NOW, "priority", 1_000 * 3_500_000 + 100 * 14_000_000),
        ("openai", "gpt-4.1", EARLIER, "priority", None),
        ("anthropic", "claude-sonnet-4-5", NOW, "batch", 1_000 * 1_500_000 + 100 * 7_500_000),
        ("anthropic", "claude-sonnet-4-5", EARLIER, "batch", 1_000 * 1_500_000 + 100 * 7_500_000),
        ("anthropic", "claude-sonnet-4-5", NOW, "priority", None),
        # Azure sells OpenAI's models as OpenAI does, and no other's so.
        ("azure", "gpt-5", NOW, "flex", 1_000 * 625_000 + 100 * 5_000_000),
        ("azure", "gpt-5", EARLIER, "flex", 1_000 * 625_000 + 100 * 5_000_000),
        ("azure", "gpt-4.1", NOW, "priority", 1_000 * 3_500_000 + 100 * 14_000_000),
        ("azure", "claude-sonnet-4-5", NOW, "batch", None),
        ("google", "claude-sonnet-4-5", NOW, "batch", None),
        ("openai", "gpt-5", NOW, "scale", None),
        ("openai", "gpt-unheard-of", NOW, "flex", None),
    ],
)
def test_tier_costs_what_is_published_for_it_or_is_unknown(
    provider: str, model: str, at_ns: int, tier: str, expected: int | None
) -> None:
    assert TABLE.price(provider, model, used(), at_ns, tier) == Priced(tier, expected)


@pytest.mark.parametrize(("provider_id", "context"), [("openai", "service_tier"), ("anthropic", "processing")])
def test_tiers_taken_as_half_are_half_wherever_the_table_knows_them(provider_id: str, context: str) -> None:
    tier = {"service_tier": "flex", "processing": "batch"}[context]
    compared = 0
    for model in next(provider for provider in providers if provider.id == provider_id).models:
        for variant in model.price_variants or ():
            if variant.when == {context: tier}:
                usage = used(1_000, 0)
                whole = cost(provider_id, model.id, usage)
                assert whole is not None
                assert cost(provider_id, model.id, usage, tier=tier) == whole / 2
                compared += 1
    assert compared > 10


def test_web_searches_have_a_price_of_their_own_or_none() -> None:
    plain = cost("anthropic", "claude-sonnet-4-5", used())
    assert plain is not None
    searched = TABLE.price("anthropic", "claude-sonnet-4-5", used(web_searches=3), NOW)
    assert searched == Priced("searched", plain + 3 * 10_000_000_000)
    assert TABLE.price("openai", "gpt-3.5-turbo", used(web_searches=3), NOW) == Priced("searched", None)


def test_a_resold_model_costs_what_its_maker_asks_and_its_searches_are_unknown() -> None:
    for maker, model in (("anthropic", "claude-haiku-4-5"), ("google", "gemini-3-flash-preview"), ("xai", "grok-4.3")):
        asked = cost(maker, model, used(cache_read_tokens=10))
        assert asked is not None
        assert cost("perplexity", f"{maker}/{model}", used(cache_read_tokens=10)) == asked
        assert cost("perplexity", f"{maker}/{model}", used(web_searches=1)) is None
        assert cost("perplexity", f"{maker}/{model}", used(), tier="batch") is None
    # Others than Perplexity do not say that they sell at the makers' prices.
    assert cost("groq", "anthropic/claude-haiku-4-5", used()) is None
    assert cost("perplexity", "perplexity/sonar", used()) == 1_000 * 250_000 + 100 * 2_500_000
    assert cost("azure", "gpt-5", used()) == cost("openai", "gpt-5", used())
    assert cost("azure", "gpt-5", used(web_searches=1)) is None


def test_request_fee_is_paid_once_a_call_and_pays_for_its_searches() -> None:
    expected = 12_000_000_000 + 1_100 * 1_000_000
    assert cost("perplexity", "sonar", used()) == expected
    assert cost("perplexity", "sonar", used(web_searches=2)) == expected


def test_float_dust_of_the_table_is_quantised_to_a_picodollar_a_token() -> None:
    dusty = ModelPrice(input_mtok=Decimal("0.18000000000000002"), output_mtok=Decimal("0.0833333333333333"))
    other = PriceTable([one_model("acme-1", dusty)], "acme-1.0")
    assert other.price("acme", "acme-1", used(10**9, 10**9), NOW).cost_picodollars == 10**9 * (180_000 + 83_333)


@given(
    calls=st.lists(
        st.builds(
            Usage,
            input_tokens=st.integers(100, 800),
            output_tokens=st.integers(50, 900),
            cache_read_tokens=st.integers(0, 50),
            cache_write_1h_tokens=st.integers(0, 50),
            reasoning_tokens=st.integers(0, 50),
        ),
        min_size=1,
        max_size=40,
    ),
    model=st.sampled_from(["claude-sonnet-4-5", "gpt-5", "gemini-2.5-pro", "deepseek-chat"]),
)
@settings(max_examples=50, deadline=None)
def test_cost_of_summed_usage_is_the_sum_of_costs(calls: list[Usage], model: str) -> None:
    fields = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_1h_tokens", "reasoning_tokens")
    total = Usage(**{field: sum(getattr(call, field) for call in calls) for field in fields})
    summed = TABLE.price(None, model, total, NOW)
    priced = [TABLE.price(None, model, call, NOW) for call in calls]
    assert {each.price_class for each in priced} == {summed.price_class}
    assert sum(each.cost_picodollars or 0 for each in priced) == summed.cost_picodollars


def test_costs_are_integers_for_every_model_and_tier() -> None:
    usage = used(300_000, 1_000, cache_read_tokens=10, web_searches=1)
    for provider_id, model in MODELS:
        if provider_id in MAKERS:
            for tier in (None, "flex", "priority", "batch"):
                assert type(cost(provider_id, model, usage, tier=tier)) in {int, type(None)}


def test_price_class_fits_a_key_column() -> None:
    usage = used(260_000, 10, cache_read_tokens=1, input_audio_tokens=1, web_searches=1)
    priced = TABLE.price("deepseek", "deepseek-v4-pro", usage, instant("2026-11-20T02:00:00"), "t" * 32)
    assert priced.price_class == f"{'t' * 16}/256000-272000/utc0100-0400/searched/audio/mixed"
    assert len(priced.price_class) <= 64


def test_price_set_names_version_and_content() -> None:
    assert TABLE.price_set.startswith(f"genai-prices-{genai_prices.__version__}-")
    assert len(TABLE.price_set) <= 64
    assert PriceTable.load().price_set == TABLE.price_set
    sets = [
        PriceTable([one_model("acme-1", ModelPrice(input_mtok=Decimal(price)))], "x" * 99).price_set for price in (1, 2)
    ]
    assert sets[0] != sets[1]
    assert all(len(each) <= 64 for each in sets)


def test_memory_of_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_MAX_REMEMBERED", 16)
    fresh = PriceTable([one_model("acme-1", ModelPrice(input_mtok=Decimal(1)))], "acme-1.0")
    for number in range(200):
        assert fresh.price("acme", f"nobody-{number}", used(), NOW).cost_picodollars is None
        assert fresh.price("acme", "acme-1", used(), NOW + number * DAY_NS).cost_picodollars == 1_000 * 10**6
    assert len(fresh._plans) <= 16
    assert len(fresh._sold) <= 16


def test_prices_are_resolved_once_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = PriceTable.load()
    resolved: list[int] = []
    resolve = fresh._make_plan

    def counted(*arguments: object) -> object:
        resolved.append(1)
        return resolve(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fresh, "_make_plan", counted)
    hours = [instant("2026-11-20") + hour * 3_600 * 10**9 for hour in range(48)]
    assert all(earlier < later for earlier, later in pairwise(hours))
    for at_ns in hours:
        fresh.price("openai", "gpt-4o", used(), at_ns)
    assert len(resolved) == 2


@pytest.mark.parametrize(
    "model", ["openai/gpt-4o-mini", "deepseek/deepseek-chat", "deepseek-r1:free", "openrouter/auto"]
)
def test_a_router_costs_what_its_answer_says_or_nobody_knows(model: str) -> None:
    assert cost("openrouter", model, used()) is None
    assert cost("openai", f"openrouter/{model}", used()) is None


@pytest.mark.parametrize(
    ("provider", "host", "seller"),
    [
        ("openai", "api.openai.com", "openai"),
        ("openai", "api.groq.com", "groq"),
        ("openai", "api.cerebras.ai", "cerebras"),
        ("openai", "api.together.xyz", "together"),
        ("openai", "openrouter.ai", "openrouter"),
        ("openai", "api.deepseek.com", "deepseek"),
        ("openai", "house.openai.azure.com", "azure"),
        ("azure", "house.openai.azure.com", "azure"),
        ("openai", "127.0.0.1", "host:127.0.0.1"),
        ("anthropic", "llm.example.com", "host:llm.example.com"),
        (None, "llm.example.com", "host:llm.example.com"),
        # Their own clients, whose names are kept, and at an address of their own.
        ("google_genai", "generativelanguage.googleapis.com", "google_genai"),
        ("mistralai", "mistral.example.com", "mistralai"),
        ("ollama", "api.openai.com", "ollama"),
    ],
)
def test_who_sells_is_told_by_the_host(provider: str | None, host: str, seller: str) -> None:
    assert TABLE.seller_at(provider, host) == seller


def test_nobody_is_billed_the_makers_list_at_an_unknown_host() -> None:
    assert cost("host:llm.example.com", "gpt-4o-mini", used()) is None
    assert cost("host:llm.example.com", "openai/gpt-4o-mini", used()) is None
    assert cost("host:api.groq.com", "llama-3.1-8b-instant", used()) == cost("groq", "llama-3.1-8b-instant", used())


def test_a_requested_name_is_priced_only_where_it_is_sold_under_that_name() -> None:
    asked = TABLE.price("openai", "gpt-4o-mini", used(), NOW, marks=["requested"])
    assert asked == Priced("requested", 1_000 * 150_000 + 100 * 600_000)
    # A deployment may be anything.
    assert TABLE.price("azure", "gpt-4o-mini", used(), NOW, marks=["requested"]) == Priced("requested", None)
    assert TABLE.price("azure", "gpt-4o-mini", used(), NOW).cost_picodollars == asked.cost_picodollars


def test_a_preview_search_has_a_price_where_it_is_that_of_any_search() -> None:
    usage = used(web_searches=2)
    ordinary = TABLE.price("openai", "gpt-5", usage, NOW)
    assert TABLE.price("openai", "gpt-5", usage, NOW, marks=["preview"]) == Priced(
        "preview/searched", ordinary.cost_picodollars
    )
    assert TABLE.price("openai", "gpt-4o", usage, NOW).cost_picodollars is not None
    assert TABLE.price("openai", "gpt-4o", usage, NOW, marks=["preview"]) == Priced("preview", None)
