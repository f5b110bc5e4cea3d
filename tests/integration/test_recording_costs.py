"""What recorded calls cost, against a sum of our own: the recording's tokens times a price table that others keep.

The recordings' tokens reach an event unchanged: `test_collector_recordings.py`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from runtap_consumers.pricing import PriceTable
from runtap_consumers.projections.batch import price_call
from runtap_consumers.projections.rollups import COST_MEASURES
from runtap_schemas import Usage
from samples import model_call

AT_NS = int(datetime(2026, 10, 20, tzinfo=UTC).timestamp()) * 10**9
# Of models that are not in the other table by these names.
PUBLISHED = {
    # anthropic.com, "Introducing Claude 2.1" and the price list of 2023: $8 and $24 a million tokens.
    "claude-2.1": {"input_cost_per_token": Decimal("0.000008"), "output_cost_per_token": Decimal("0.000024")},
    # platform.claude.com, Pricing, Claude Haiku 3.5 (retired): $0.80 and $4, cache writes $1 and $1.60, reads $0.08.
    "claude-3-5-haiku-latest": {
        "input_cost_per_token": Decimal("0.0000008"),
        "output_cost_per_token": Decimal("0.000004"),
        "cache_creation_input_token_cost": Decimal("0.000001"),
        "cache_creation_input_token_cost_above_1hr": Decimal("0.0000016"),
        "cache_read_input_token_cost": Decimal("0.00000008"),
    },
}
# Weights on somebody's own server (the recorded host is localhost): there is no price to know.
SOLD_BY_NOBODY = {"facebook/opt-125m"}
ORDINARY_TIERS = {None, "default", "standard"}


def read(name: str) -> Any:
    folder = os.environ.get("RUNTAP_DATA") or str(Path(os.environ.get("RUNTAP_RECORDINGS", "missing")).parent / "data")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"no {path.name}: RUNTAP_DATA names no folder that has it")
    return json.loads(path.read_text(), parse_float=Decimal)


def independent_cost(truth: dict[str, Any], prices: dict[str, Any]) -> Decimal:
    """Dollars by the table alone. Tokens of a part without a price of its own cost what the others do."""
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


def worker_says(recording: dict[str, Any], table: PriceTable) -> dict[str, Any]:
    """The measures of the recorded call, with the exact cost (`None`: unknown)."""
    truth = recording["truth"]
    usage = Usage(
        input_tokens=truth["input_tokens"],
        output_tokens=truth["output_tokens"],
        cache_read_tokens=truth["cached_tokens"],
        cache_write_5m_tokens=truth.get("cache_write_5m_tokens") or truth["cache_write_tokens"],
        cache_write_1h_tokens=truth.get("cache_write_1h_tokens"),
        reasoning_tokens=truth["reasoning_tokens"],
        web_searches=truth["web_searches"],
    )
    is_metered = truth["input_tokens"] is not None
    event = model_call(
        AT_NS,
        status="ok" if truth["status"] == 200 else "error",
        provider=recording["kind"].split(".")[0],
        request_model=truth["request_model"],
        model=truth["response_model"],
        service_tier=truth["service_tier"],
        usage=usage if is_metered else None,
        usage_source="response" if is_metered else "none",
    )
    call = price_call(event, event, AT_NS, table)
    measures = dict(zip((measure.name for measure in COST_MEASURES), call.measures, strict=True))
    return {**measures, "cost": call.cost_picodollars}


def test_every_recorded_call_costs_what_an_independent_sum_says_or_is_unknown() -> None:
    folder = os.environ.get("RUNTAP_RECORDINGS")
    if not folder:
        pytest.skip("RUNTAP_RECORDINGS names no folder of recordings")
    table, prices = PriceTable.load(), {**read("litellm_prices.json"), **PUBLISHED}
    seen: Counter[str] = Counter()
    for file in sorted(Path(folder).glob("*.json")):
        recording = json.loads(file.read_text())
        truth = recording["truth"]
        model = truth["response_model"] or truth["request_model"]
        said = worker_says(recording, table)
        counters = {name: said[f"{name}_calls"] for name in ("priced", "unpriced", "unmetered")}
        tokens = (said["input_tokens"], said["output_tokens"])
        if truth["input_tokens"] is None:
            # Unknown tokens have an unknown cost; an error that said nothing is no gap in the bill.
            kind = "unmetered" if truth["status"] == 200 else "failed"
            assert (said["cost"], tokens) == (None, (0, 0)), file.name
            assert counters == {"priced": 0, "unpriced": 0, "unmetered": int(kind == "unmetered")}, file.name
        elif model in SOLD_BY_NOBODY:
            kind = "unpriced"
            assert said["cost"] is None, file.name
            assert counters == {"priced": 0, "unpriced": 1, "unmetered": 0}, file.name
            assert tokens == (truth["input_tokens"], truth["output_tokens"]), file.name
        else:
            kind = "priced"
            # What the sum does not know of.
            assert not truth["web_searches"], file.name
            assert truth["service_tier"] in ORDINARY_TIERS, file.name
            assert said["cost"] == independent_cost(truth, prices[model]) * 10**12, file.name
            assert said["cost"] > 0
            assert counters == {"priced": 1, "unpriced": 0, "unmetered": 0}, file.name
            assert tokens == (truth["input_tokens"], truth["output_tokens"]), file.name
        seen[kind] += 1
    assert seen == {"priced": 60, "unpriced": 2, "unmetered": 8, "failed": 1}
