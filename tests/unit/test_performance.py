"""Performance of a batch: counts, durations, output and sketches of each kind of run, minute by minute."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from runtap_consumers.pricing import PriceTable
from runtap_consumers.projections.batch import Batch, CostKey
from runtap_consumers.projections.dimensions import Dimensions
from runtap_consumers.projections.performance import fold_performance
from runtap_consumers.projections.rollups import PERFORMANCE
from runtap_consumers.projections.sketch import bucket_of
from runtap_consumers.units import MINUTE_NS
from runtap_schemas import RunEnded, Usage
from samples import START_NS, model_call

PRICES = PriceTable([], "none")


class NoCostKeys:
    """Nothing here is kept by cost key."""

    def numbers(self, keys: set[CostKey]) -> dict[CostKey, int]:
        raise AssertionError(keys)


ended = st.builds(
    model_call,
    st.integers(START_NS - MINUTE_NS, START_NS + MINUTE_NS),
    run_type=st.sampled_from(["llm", "chain"]),
    name=st.sampled_from(["one", "two"]),
    status=st.sampled_from(["ok", "error", "interrupted", "cancelled"]),
    # The provider is no part of the key, so that these meet again in one row.
    provider=st.sampled_from(["openai", "azure", None]),
    request_model=st.sampled_from(["asked", None]),
    model=st.sampled_from(["answered", None]),
    duration_ns=st.integers(0, 10**16),
    time_to_first_token_ns=st.none() | st.integers(0, 10**16),
    usage=st.none() | st.builds(Usage, input_tokens=st.just(1), output_tokens=st.none() | st.integers(0, 10**9)),
    usage_source=st.sampled_from(["response", "cache"]),
    finish_reason=st.sampled_from(["stop", "length", "max_tokens", "content_filter", None]),
)


def measures_of(runs: list[RunEnded]) -> dict[str, Any]:
    """Worked out by name."""
    answers = [
        (run.usage.output_tokens, run.duration_ns)
        for run in runs
        if run.usage and run.usage.output_tokens is not None and run.usage_source == "response"
    ]
    durations = [run.duration_ns for run in runs]
    first_tokens = [run.time_to_first_token_ns for run in runs if run.time_to_first_token_ns is not None]
    counts = {
        name: sum(run.status == status for run in runs)
        for name, status in (("ok", "ok"), ("errors", "error"), ("interrupted",) * 2, ("cancelled",) * 2)
    }
    return {
        **counts,
        "count": len(runs),
        "total_ns": sum(durations),
        "min_ns": min(durations),
        "max_ns": max(durations),
        "output_tokens": sum(tokens for tokens, _ in answers),
        "output_ns": sum(duration for _, duration in answers),
        "first_token_count": len(first_tokens),
        "cut_off": sum(run.finish_reason in ("length", "max_tokens") for run in runs),
        "refused": sum(run.finish_reason == "content_filter" for run in runs),
        "sketch": sorted(map(bucket_of, durations)),
        "first_token_sketch": sorted(map(bucket_of, first_tokens)),
    }


@given(st.lists(ended, max_size=30))
def test_every_kind_has_its_measures_minute_by_minute(runs: list[RunEnded]) -> None:
    batch = Batch(PRICES, NoCostKeys(), log_time_ns=START_NS, ended_uncapped=[(run, run.at_ns) for run in runs])
    Dimensions(lambda _day, values: values).cap(batch)
    rows = fold_performance(batch, ()).minutes[PERFORMANCE.name]
    expected: dict[tuple[Any, ...], list[RunEnded]] = defaultdict(list)
    for run in runs:
        minute, model = run.at_ns // MINUTE_NS * MINUTE_NS, ""
        if run.run_type == "llm":
            model = run.model or run.request_model or ""
        expected[minute, run.service, run.environment, run.run_type, run.name, model].append(run)
    assert set(rows) == set(expected)
    for key, measures in rows.items():
        named = dict(zip([measure.name for measure in PERFORMANCE.measures], measures, strict=True))
        for sketch in ("sketch", "first_token_sketch"):
            named[sketch] = sorted(named[sketch])
        assert named == measures_of(expected[key])
