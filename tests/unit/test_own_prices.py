"""The owner's own prices: what a file may say, what it changes, and how it is read again."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from genai_prices import update_prices as genai_update
from structlog.testing import capture_logs

from runtap_consumers.errors import PriceFileError
from runtap_consumers.pricing import PriceTable
from runtap_consumers.pricing.overrides import parse_overrides
from runtap_consumers.pricing.source import PriceSource, data_path, load_prices, update_prices
from runtap_consumers.settings import ConsumerSettings
from runtap_schemas import Usage

USAGE = Usage(input_tokens=1_000, output_tokens=100, cache_read_tokens=200, reasoning_tokens=50)
PICO = 10**6


def instant(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * 10**9


def table(text: str) -> PriceTable:
    from genai_prices.data import providers

    return PriceTable(providers, "genai", parse_overrides(text, "prices.toml"))


def cost(
    text: str,
    provider: str | None = "openai",
    model: str = "gpt-4o-mini",
    usage: Usage = USAGE,
    day: str = "2026-11-20",
    tier: str | None = None,
) -> int | None:
    return table(text).price(provider, model, usage, instant(day), tier).cost_picodollars


OWN = '[[price]]\nprovider = "openai"\nmodel = "gpt-4o-mini"\n'


def test_an_own_price_replaces_the_whole_price_from_its_day_on() -> None:
    text = OWN + 'from = 2026-06-01\ninput = "2.00"\noutput = 10.5\n'
    listed = cost("")
    assert listed == 800 * 150_000 + 200 * 75_000 + 100 * 600_000
    assert cost(text, day="2026-05-31") == listed
    # Cached and reasoning tokens are not named: they cost what input and output cost.
    assert cost(text, day="2026-06-01") == 1_000 * 2 * PICO + 100 * 10_500_000


def test_every_class_of_tokens_has_a_price_of_its_own() -> None:
    text = (
        OWN + 'input="1"\noutput="2"\ncache_read="3"\ncache_write_5m="4"\ncache_write_1h="5"\n'
        'reasoning="6"\ninput_audio="7"\ninput_image="8"\noutput_audio="9"\nweb_search="10"\nrequest="11"\n'
    )
    cached = Usage(
        input_tokens=1_000,
        output_tokens=100,
        cache_read_tokens=10,
        cache_write_5m_tokens=20,
        cache_write_1h_tokens=30,
        reasoning_tokens=40,
        web_searches=2,
    )
    assert cost(text, usage=cached) == (
        (940 * 1 + 60 * 2 + 10 * 3 + 20 * 4 + 30 * 5 + 40 * 6) * PICO + (2 * 10 + 11) * 10**9
    )
    spoken = Usage(
        input_tokens=1_000, output_tokens=100, input_audio_tokens=10, input_image_tokens=20, output_audio_tokens=30
    )
    assert cost(text, usage=spoken) == (970 * 1 + 70 * 2 + 10 * 7 + 20 * 8 + 30 * 9) * PICO + 11 * 10**9


def test_large_calls_pay_their_own_price_for_all_tokens() -> None:
    text = OWN + 'input="1"\noutput="2"\n[[price.above]]\ninput_tokens=50_000\ninput="3"\ncache_read="0.5"\n'
    for size, expected in ((50_000, 50_000), (50_001, 3 * 50_001)):
        assert cost(text, usage=Usage(input_tokens=size, output_tokens=0)) == expected * PICO
    cached = Usage(input_tokens=60_000, output_tokens=10, cache_read_tokens=10_000)
    assert cost(text, usage=cached) == (50_000 * 3 + 10 * 2) * PICO + 10_000 * 500_000
    assert table(text).price("openai", "gpt-4o", Usage(input_tokens=60_000, output_tokens=0), 0).price_class == (
        "50000-100000"
    )


def test_the_last_entry_that_has_begun_counts() -> None:
    text = OWN + 'input="1"\noutput="0"\n' + OWN + 'from=2026-03-01\ninput="2"\noutput="0"\n'
    assert cost(text, day="2026-02-28") == 1_000 * PICO
    assert cost(text, day="2026-03-01") == 2_000 * PICO


def test_a_model_nobody_knows_gets_a_price_and_none_before_its_day() -> None:
    text = '[[price]]\nmodel = "in-house-*"\nfrom = 2026-01-01\ninput = "0.1"\noutput = "0.2"\n'
    assert cost(text, "vllm", "In-House-70B") == 1_000 * 100_000 + 100 * 200_000
    assert cost(text, None, "in-house-8b") == 1_000 * 100_000 + 100 * 200_000
    assert cost(text, "vllm", "in-house-70b", day="2025-12-31") is None
    assert cost(text, "vllm", "another") is None


def test_the_provider_of_an_entry_is_langchains_or_the_tables_name() -> None:
    for name in ("google_genai", "google", "GOOGLE"):
        text = f'[[price]]\nprovider = "{name}"\nmodel = "gemini-2.5-pro"\ninput = "1"\noutput = "0"\n'
        assert cost(text, "google_genai", "models/gemini-2.5-pro") == 1_000 * PICO
        assert cost(text, "openai", "gpt-4o-mini") == cost("")


def test_an_entry_fits_the_model_that_is_priced_however_the_call_names_it() -> None:
    own = 100 * 2 * PICO + 1_000 * PICO
    for provider, model in (
        ("openai", "gpt-4o-mini"),
        ("openai", "openai/gpt-4o-mini"),
        (None, "gpt-4o-mini"),
        (None, "openai/gpt-4o-mini"),
    ):
        assert cost(OWN + 'input="1"\noutput="2"\n', provider, model) == own
    # Another seller's call of the same model is another price.
    for provider, model in (("azure", "gpt-4o-mini"), ("openai", "azure/gpt-4o-mini"), ("gateway", "gpt-4o-mini")):
        assert cost(OWN + 'input="1"\noutput="2"\n', provider, model) == cost("", provider, model)
    vertex = '[[price]]\nprovider="google_vertexai"\nmodel="gemini-2.5-pro"\ninput="1"\noutput="2"\n'
    assert cost(vertex, "google_vertexai", "gemini-2.5-pro") == own
    assert cost(vertex, "google_genai", "gemini-2.5-pro") == cost("", "google_genai", "gemini-2.5-pro")
    assert cost(vertex, None, "gemini-2.5-pro") == own


def test_tiers_cost_what_the_file_says() -> None:
    text = '[[tier]]\nprovider="openai"\nmodel="*"\ntier="priority"\nfactor="1.7"\n'
    listed = cost("")
    assert listed is not None
    assert cost(text, tier="priority") == listed * 17 // 10
    assert cost(text) == listed
    own = OWN + 'input="1"\noutput="0"\n' + OWN + 'tier="flex"\ninput="0.3"\noutput="0"\n'
    assert cost(own, tier="flex") == 300 * PICO
    # Another tier's list price does not belong to an own standard price: unknown, not a guess.
    assert cost(own, tier="priority") is None
    assert cost(OWN + 'input="1"\noutput="0"\n', tier="flex") == 500 * PICO


def test_a_discount_is_taken_off_everything() -> None:
    text = '[[discount]]\nprovider="openai"\nmodel="gpt-*"\nfrom=2026-01-01\npercent="12.5"\n'
    listed = cost("")
    assert listed is not None
    assert cost(text) == listed * 7 // 8
    assert cost(text, day="2025-12-31") == listed
    both = OWN + 'input="1"\noutput="0"\nweb_search="8"\n' + text
    searched = Usage(input_tokens=1_000, output_tokens=0, web_searches=1)
    assert cost(both, usage=searched) == (1_000 * PICO + 8 * 10**9) * 7 // 8
    ended = text + '[[discount]]\nprovider="openai"\nmodel="gpt-*"\nfrom=2026-02-01\npercent="0"\n'
    assert cost(ended) == listed


def test_deployments_are_priced_as_what_they_are() -> None:
    text = '[aliases.azure]\n"Support-Bot" = "gpt-4o-mini"\n[aliases."*"]\nhouse = "gpt-4o-mini"\n'
    listed = cost("", "azure")
    assert listed is not None
    assert cost("", "azure", "support-bot") is None
    assert cost(text, "azure_openai", "support-bot") == listed
    assert cost(text, "openai", "support-bot") is None
    assert cost(text, "openai", "house") == cost("")
    # Behind a profile of Bedrock's: an id that is not in one region.
    arn = "arn:aws:bedrock:us-east-1:1:application-inference-profile/a1"
    bare = "anthropic.claude-sonnet-4-6"
    aliases = f'[aliases.aws]\n"{arn}" = "global.{bare}"\n"{bare}" = "global.{bare}"\n'
    regional, everywhere = (cost("", "amazon_bedrock", f"{prefix}.{bare}") for prefix in ("us", "global"))
    assert regional is not None
    assert everywhere is not None
    assert regional * 10 == everywhere * 11
    assert cost("", "amazon_bedrock", bare) == regional
    for provider in ("amazon_bedrock", "bedrock_converse"):
        assert [cost(aliases, provider, model) for model in (arn, bare)] == [everywhere] * 2
    # An own price may name either.
    for name in ("support-bot", "gpt-4o-mini"):
        priced = text + f'[[price]]\nmodel="{name}"\ninput="1"\noutput="0"\n'
        assert cost(priced, "azure", "support-bot") == 1_000 * PICO


def test_the_price_set_names_the_content() -> None:
    plain = table("").price_set
    one, same, other = (table(OWN + f'input="{price}"\noutput="1"\n').price_set for price in ("1", "1", "2"))
    assert one == same
    assert len({plain, one, other}) == 3
    assert "+own-" in one
    assert table("# nothing but a comment\n").price_set == plain


@pytest.mark.parametrize(
    ("text", "where", "word"),
    [
        ("a = 1\nb = = 2\n", "no TOML", "TOML"),
        ('\n[[price]]\nmodel = "x"\noutput = "1"\n', "price 1, input", "'input' is missing"),
        (
            '[[price]]\nmodel = "x"\ninput = "1"\noutput = "1"\n[[price]]\nmodel="y"\ninput="-1"\noutput="1"\n',
            "price 2, input",
            "input",
        ),
        ('[[price]]\nmodel = "x"\ninput = "1"\noutput = "1"\n\ninptu = "3"\n', "price 1, inptu", "'inptu'"),
        ('[[prices]]\nmodel = "x"\n', "prices", "'prices'"),
        ('[[price]]\nmodel = "x"\ninput = "dear"\noutput = "1"\n', "price 1, input", "dear"),
        ('[[price]]\nmodel = "x"\ninput = "0.0000001"\noutput = "1"\n', "price 1, input", "decimal"),
        ('[[price]]\nmodel = "x"\ninput = nan\noutput = "1"\n', "price 1, input", "input"),
        ('[[price]]\nmodel = "x"\nfrom = 20260101\ninput = "1"\noutput = "1"\n', "price 1, from", "from"),
        ('[[price]]\nmodel = "x"\nfrom = "soon"\ninput = "1"\noutput = "1"\n', "price 1, from", "from"),
        (
            '[[price]]\nmodel="x"\ninput="1"\noutput="1"\n[[price.above]]\ninput_tokens=5\n[[price.above]]\ninput_tokens=9\noutput="x"\n',
            "price 1, above 2, output",
            "output",
        ),
        (
            '[[price]]\nmodel="x"\ninput="1"\noutput="1"\n[[price.above]]\ninput_tokens=5\n[[price.above]]\ninput_tokens=5\n',
            "price 1",
            "rise",
        ),
        ('[[tier]]\nmodel="x"\ntier="Flex/1"\nfactor="2"\n', "tier 1, tier", "tier"),
        ('[[discount]]\nmodel="x"\n\npercent="101"\n', "discount 1, percent", "percent"),
        ("[aliases.azure]\nbot = 3\n", "aliases, azure, bot", "bot"),
        (
            '[[discount]]\nmodel="x"\nfrom=2026-02-01\npercent="1"\n[[discount]]\nmodel="X"\nfrom=2026-01-01\npercent="2"\n',
            "discount 2, from",
            "order of their days",
        ),
    ],
)
def test_what_cannot_work_is_named_with_file_and_key(text: str, where: str, word: str) -> None:
    with pytest.raises(PriceFileError, match=rf"^prices\.toml: {where}: ") as raised:
        parse_overrides(text, "prices.toml")
    assert word in str(raised.value)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(PriceFileError) as raised:
        parse_overrides('[[price]]\nmodel="x"\ninput="a"\noutput="b"\n', "p.toml")
    assert "p.toml: price 1, input: " in str(raised.value)
    assert "p.toml: price 1, output: " in str(raised.value)


def settings(tmp_path: Path, **more: Any) -> ConsumerSettings:
    return ConsumerSettings.load(database_url=f"sqlite:///{tmp_path}/store/runtap.db", **more)


def write(path: Path, text: str, tick: int) -> None:
    path.write_text(text)
    os.utime(path, ns=(tick, tick))


def test_a_changed_file_is_read_again_and_a_broken_one_leaves_the_prices(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    write(path, OWN + 'input="1"\noutput="0"\n', 1)
    source = PriceSource(settings(tmp_path, prices=str(path)))
    first = source.table
    assert not source.refresh()
    write(path, OWN + 'input="1"\noutput="0"\n# a comment\n', 2)
    assert not source.refresh()
    assert source.table is first
    write(path, OWN + 'input="2"\noutput="0"\n', 3)
    assert source.refresh()
    assert source.table.price_set != first.price_set
    second = source.table
    write(path, OWN + 'input="broken"\n', 4)
    with capture_logs() as logs:
        assert [source.refresh(), source.refresh()] == [False, False]
        path.unlink()
        assert [source.refresh(), source.refresh()] == [False, False]
    assert [entry["event"] for entry in logs] == ["prices_refused", "prices_refused"]
    assert f"{path}: price 1, input" in logs[0]["reason"]
    assert source.table is second
    write(path, OWN + 'input="1"\noutput="0"\n', 5)
    assert source.refresh()
    assert source.table.price_set == first.price_set


def test_a_broken_file_stops_a_process_at_its_start(tmp_path: Path) -> None:
    with pytest.raises(PriceFileError, match="RUNTAP_PRICES"):
        PriceSource(settings(tmp_path, prices=str(tmp_path / "missing.toml")))


def newer_data(price: str = "7") -> bytes:
    model = {
        "id": "brand-new",
        "match": {"equals": "brand-new"},
        "prices": {"input_mtok": float(price), "output_mtok": 1},
    }
    provider = {"id": "openai", "name": "OpenAI", "api_pattern": "x", "models": [model]}
    return json.dumps([provider]).encode()


def test_newer_data_are_taken_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_bytes(newer_data())
    chosen = settings(tmp_path)
    before = load_prices(chosen)
    update = update_prices(chosen, file, instant("2026-11-20"))
    assert update == ("genai-prices-2026-11-20", 1, tmp_path / "store" / "prices.json")
    after = load_prices(chosen)
    assert after.price_set.startswith("genai-prices-2026-11-20-")
    assert before.price("openai", "brand-new", USAGE, 0).cost_picodollars is None
    assert after.price("openai", "brand-new", USAGE, 0).cost_picodollars == (7_000 + 100) * PICO
    file.write_bytes(newer_data("8"))
    update_prices(chosen, file, instant("2026-11-20"))
    assert load_prices(chosen).price_set != after.price_set


@pytest.mark.parametrize("content", [b"no json", b"{}", b"[]", b'[{"id": 1}]'])
def test_data_that_are_not_genai_prices_own_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "data.json"
    file.write_bytes(content)
    with pytest.raises(PriceFileError, match=r"data\.json: "):
        update_prices(settings(tmp_path), file, 0)
    assert not data_path(settings(tmp_path)).exists()


@pytest.fixture
def download_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/data.json" else 404)
            self.end_headers()
            if self.path == "/data.json":
                self.wfile.write(newer_data())

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_newer_data_are_taken_from_where_genai_prices_updates(
    tmp_path: Path, download_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(tmp_path, price_data=str(tmp_path / "elsewhere.json"))
    monkeypatch.setattr(genai_update, "DEFAULT_UPDATE_URL", f"{download_url}/gone.json")
    with pytest.raises(PriceFileError, match="--from-file"):
        update_prices(chosen, None, 0)
    monkeypatch.setattr(genai_update, "DEFAULT_UPDATE_URL", f"{download_url}/data.json")
    assert update_prices(chosen, None, 0).path == tmp_path / "elsewhere.json"
    assert load_prices(chosen).price("openai", "brand-new", USAGE, 0).cost_picodollars == (7_000 + 100) * PICO


def test_the_nearest_known_names_are_found() -> None:
    sellers = table("").sellers
    assert "openai/gpt-4o-mini" in sellers.nearest("openai", "gpt-4o-minni")
    assert sellers.nearest(None, "zzzzzzzz") == []


def test_no_float_comes_near_a_price() -> None:
    overrides = parse_overrides(OWN + "input = 0.1\noutput = 3\n", "p")
    assert overrides.price[0].input == Decimal("0.1")
    assert all(isinstance(price, Decimal) for price in (overrides.price[0].input, overrides.price[0].output))
