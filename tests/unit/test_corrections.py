"""runtap's corrections of genai-prices: each is needed, does what its comment says, and gives way
to the owner's file.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from genai_prices.data import providers
from genai_prices.types import ModelPrice

from runtap_consumers.pricing import PriceTable
from runtap_consumers.pricing.corrections import correct, load_corrections
from runtap_consumers.pricing.listing import list_rates
from runtap_consumers.pricing.overrides import OwnPrice, parse_overrides
from runtap_consumers.pricing.source import load_prices, update_prices
from runtap_consumers.settings import ConsumerSettings
from runtap_schemas import Usage

CORRECTIONS = load_corrections()
LISTED = PriceTable(providers, "genai")
CORRECTED = PriceTable.load()
SMALL = Usage(input_tokens=1_000, output_tokens=100, cache_read_tokens=200, cache_write_1h_tokens=50, web_searches=1)
LARGE = Usage(input_tokens=250_000, output_tokens=100, cache_read_tokens=200, cache_write_5m_tokens=50)


def instant(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * 10**9


NOW = instant("2026-11-20")


def costs(table: PriceTable, entry: OwnPrice, at_ns: int, tier: str | None = None) -> list[int | None]:
    return [table.price(entry.provider, entry.model, usage, at_ns, tier).cost_picodollars for usage in (SMALL, LARGE)]


@pytest.mark.parametrize("entry", CORRECTIONS, ids=lambda entry: str(entry.model))
def test_every_correction_is_needed_and_whole(entry: OwnPrice) -> None:
    assert entry.tier is None
    assert "*" not in entry.model
    provider = next(each for each in providers if each.id == entry.provider)
    listed = provider.find_model(entry.model)
    assert costs(CORRECTED, entry, NOW) != costs(LISTED, entry, NOW), "genai-prices says the same by now: take it out"
    assert None not in costs(CORRECTED, entry, NOW)
    assert (listed is None) == (entry.begins is None)
    if listed is not None and entry.begins is not None:
        # What the table prices apart, the correction does too.
        assert isinstance(listed.prices, ModelPrice)
        assert vars(listed.prices).keys() == vars(entry.model_price()).keys()
        assert costs(CORRECTED, entry, instant(f"{entry.begins}") - 1) == costs(LISTED, entry, NOW)


def test_long_calls_cost_what_others_do_since_the_long_context_beta_ended() -> None:
    (entry,) = (each for each in CORRECTIONS if each.model == "claude-sonnet-4-5")
    flat = 249_750 * 3_000_000 + 200 * 300_000 + 50 * 3_750_000 + 100 * 15_000_000
    before, since = instant("2026-04-29"), instant("2026-04-30")
    assert costs(CORRECTED, entry, since) == [costs(LISTED, entry, since)[0], flat]
    assert costs(CORRECTED, entry, before) == costs(LISTED, entry, before)
    assert costs(LISTED, entry, since)[1] != flat
    batch = CORRECTED.price("anthropic", entry.model, LARGE, NOW, "batch").cost_picodollars
    assert batch == flat / 2
    # Perplexity resells it at its maker's price, so at the corrected one.
    assert CORRECTED.price("perplexity", f"anthropic/{entry.model}", LARGE, NOW).cost_picodollars == flat


def test_models_that_the_table_lacks_cost_what_their_siblings_do() -> None:
    for model, sibling in (("claude-mythos-5", "claude-fable-5"), ("claude-mythos-5-1", "claude-fable-5-1")):
        for usage in (SMALL, LARGE):
            expected = LISTED.price("anthropic", sibling, usage, NOW).cost_picodollars
            assert expected is not None
            assert CORRECTED.price("anthropic", model, usage, NOW).cost_picodollars == expected


def test_an_entry_without_a_day_gives_way_to_a_table_that_has_the_model() -> None:
    def entry(model: str) -> OwnPrice:
        return OwnPrice.model_validate({"provider": "openai", "model": model, "input": Decimal(1), "output": 1})

    added = PriceTable(correct(providers, [entry("brand-new")]), "genai")
    assert added.price("openai", "brand-new", LARGE, NOW).cost_picodollars == 250_100 * 10**6
    assert PriceTable(correct(providers, [entry("gpt-5")]), "genai").price_set == LISTED.price_set


def test_correcting_leaves_the_data_of_the_process_as_they_are() -> None:
    before = repr(providers)
    assert repr(correct(providers, CORRECTIONS)) != before
    assert repr(providers) == before


def test_corrections_are_part_of_the_price_set_and_stand_over_newer_data(tmp_path: Path) -> None:
    settings = ConsumerSettings.load(database_url=f"sqlite:///{tmp_path}/runtap.db")
    assert load_prices(settings).price_set == CORRECTED.price_set
    assert CORRECTED.price_set[-8:] != LISTED.price_set[-8:]
    # Newer data may have a model at last, and lose whole providers.
    model = {"id": "m", "match": {"equals": "claude-mythos-5"}, "prices": {"input_mtok": 3, "output_mtok": 4}}
    provider = {"id": "anthropic", "name": "Anthropic", "api_pattern": "x", "models": [model]}
    file = tmp_path / "data.json"
    for providers_left, mythos, mythos_1 in (([provider], 3 * 250_000 + 4 * 100, True), ([], None, False)):
        other = {**provider, "id": "other", "models": []}
        file.write_text(json.dumps([other, *providers_left]))
        update_prices(settings, file, NOW)
        newer = load_prices(settings)
        cost = newer.price("anthropic", "claude-mythos-5", LARGE, NOW).cost_picodollars
        assert cost == (mythos and mythos * 10**6)
        added = newer.price("anthropic", "claude-mythos-5-1", LARGE, NOW).cost_picodollars
        assert (added is not None) is mythos_1


def test_an_own_price_beats_a_correction() -> None:
    own = parse_overrides(
        '[[price]]\nprovider="anthropic"\nmodel="claude-sonnet-4-5"\nfrom=2026-06-01\ninput="1"\noutput="1"\n', "p.toml"
    )
    table = PriceTable(correct(providers, CORRECTIONS), "genai", own)
    (entry,) = (each for each in CORRECTIONS if each.model == "claude-sonnet-4-5")
    assert costs(table, entry, NOW)[1] == 250_100 * 10**6
    assert costs(table, entry, instant("2026-05-31")) == costs(CORRECTED, entry, instant("2026-05-31"))


def test_a_listing_says_what_is_corrected() -> None:
    rows = list_rates(CORRECTED, "anthropic", "claude-sonnet-4-5", NOW)
    assert rows
    assert [row["is_corrected"] for row in rows] == [True] * len(rows)
    assert {row["price_class"] for row in rows} == {"standard", "batch"}
    assert [row["is_corrected"] for row in list_rates(CORRECTED, "openai", "gpt-4o-mini", NOW) or ()][:1] == [False]
