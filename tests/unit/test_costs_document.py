"""The example in docs/costs.md is a file that works."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from genai_prices.data import providers

from runtap_consumers.pricing import PriceTable
from runtap_consumers.pricing.overrides import parse_overrides
from runtap_schemas import Usage

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "costs.md"
AT_NS = int(datetime(2026, 11, 20, tzinfo=UTC).timestamp()) * 10**9


def test_the_example_prices_what_it_says() -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    table = PriceTable(providers, "genai", parse_overrides(example, "docs/costs.md"))
    usage = Usage(input_tokens=1_000, output_tokens=100, cache_read_tokens=400)

    def cost(provider: str, model: str, tier: str | None = None, usage: Usage = usage) -> int | None:
        return table.price(provider, model, usage, AT_NS, tier).cost_picodollars

    assert cost("openai", "gpt-4o-mini-2024-07-18") == 600 * 120_000 + 400 * 60_000 + 100 * 480_000
    assert cost("openai", "gpt-4o-mini", "batch") == 1_000 * 60_000 + 100 * 240_000
    assert cost("openai", "gpt-4o-mini", "priority") == (600 * 120_000 + 400 * 60_000 + 100 * 480_000) * 17 // 10
    large = Usage(input_tokens=128_001, output_tokens=0)
    assert cost("openai", "gpt-4o-mini", usage=large) == 128_001 * 240_000
    assert cost("vllm", "house-70b") == 1_100 * 20_000 + 100_000_000
    assert cost("azure", "support-bot") is not None
    listed = PriceTable.load().price("anthropic", "claude-sonnet-4-5", usage, AT_NS).cost_picodollars
    assert listed is not None
    assert cost("anthropic", "claude-sonnet-4-5") == listed * 925 // 1_000
