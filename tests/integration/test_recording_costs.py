"""
What recorded calls cost, against a sum of our own: the recording's tokens times a price table that others keep.

The recordings' tokens reach an event unchanged: `test_collector_recordings.py`.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from runtap_consumers.pricing import PriceTable
from runtap_schemas import Usage

AT_NS = int(datetime(2026, 10, 20, tzinfo=UTC).timestamp()) * 10**9


def read(name: str) -> Any:
    folder = os.environ.get("RUNTAP_DATA") or str(Path(os.environ.get("RUNTAP_RECORDINGS", "missing")).parent / "data")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"no {path.name}: RUNTAP_DATA names no folder that has it")
    return json.loads(path.read_text(), parse_float=Decimal)


def independent_cost(truth: dict[str, Any], prices: dict[str, Any]) -> Decimal:
    """
    Dollars by the table alone. Tokens of a part without a price of its own cost what the others do.
    """
    fresh = prices["input_cost_per_token"]
    write = prices.get("cache_creation_input_token_cost", fresh)
    parts = {
        "cached_tokens": prices.get("cache_read_input_token_cost", fresh),
        "cache_write_5m_tokens": write,
        "cache_write_1h_tokens": prices.get("cache_creation_input_token_cost_above_1hr", write),
    }
    counted = {name: truth.get(name) or 0 for name in parts}
    if not any(counted[name] for name in ("cache_write_5m_tokens", "cache_write_1h_tokens")):
        counted["cache_write_5m_tokens"] = truth["cache_write_tokens"] or 0
    plain = truth["input_tokens"] - sum(counted.values())
    cost = plain * fresh + sum(counted[name] * parts[name] for name in parts)
    return Decimal(cost + truth["output_tokens"] * prices["output_cost_per_token"])


def test_every_recorded_call_costs_what_an_independent_sum_says() -> None:
    folder = os.environ.get("RUNTAP_RECORDINGS")
    if not folder:
        pytest.skip("RUNTAP_RECORDINGS names no folder of recordings")
    table, litellm = PriceTable.load(), read("litellm_prices.json")
    equal = unmetered = 0
    others = []
    for file in sorted(Path(folder).glob("*.json")):
        recording = json.loads(file.read_text())
        truth = recording["truth"]
        provider = recording["kind"].split(".")[0]
        model = truth["response_model"] or truth["request_model"]
        usage = Usage(
            input_tokens=truth["input_tokens"],
            output_tokens=truth["output_tokens"],
            cache_read_tokens=truth["cached_tokens"],
            cache_write_5m_tokens=truth.get("cache_write_5m_tokens") or truth["cache_write_tokens"],
            cache_write_1h_tokens=truth.get("cache_write_1h_tokens"),
            reasoning_tokens=truth["reasoning_tokens"],
            web_searches=truth["web_searches"],
        )
        ours = table.price(provider, model, usage, AT_NS, truth["service_tier"]).cost_picodollars
        if truth["input_tokens"] is None:
            assert ours is None, file.name
            unmetered += 1
        elif (
            model not in litellm or truth["web_searches"] or truth["service_tier"] not in (None, "default", "standard")
        ):
            others.append(f"{file.stem}: {provider} {model}, {truth['service_tier']}: {ours}")
        else:
            assert ours == independent_cost(truth, litellm[model]) * 10**12, file.name
            equal += 1
    sys.stdout.write("\n".join([f"equal {equal}, without usage {unmetered}, not compared {len(others)}", *others, ""]))
    assert (equal, unmetered, len(others)) == (57, 9, 5)
