"""What Prometheus scrapes: every family's values to the digit, folded and hostile names, on both stores."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cost_sql import COST
from partition_setting import WorkerTools, rows
from prometheus_tools import check_with_promtool
from runtap_consumers.projections.rollups import DURATION_BOUNDS_NS
from runtap_consumers.serve import metrics
from runtap_consumers.serve.metrics import exposition
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.snapshot import open_snapshot
from runtap_schemas import Event, Usage
from samples import SECOND_NS, START_NS, Log, chain_end, failure, model_call, report, run_start

MODEL = "gpt-4o-mini-2024-07-18"
Series = dict[frozenset[tuple[str, str]], float]
BOUNDS = ("0.1", "0.5", "1.0", "2.0", "5.0", "10.0", "30.0", "60.0", "+Inf")
STATUSES = ("success", "error", "interrupted", "cancelled")


def labels(**given: str) -> frozenset[tuple[str, str]]:
    return frozenset({"service": "checkout", "environment": "test", **given}.items())


def bare(**given: str) -> frozenset[tuple[str, str]]:
    return frozenset(given.items())


def scrape(store: Store) -> dict[str, Series]:
    """Series by the name that their lines begin with."""
    with open_snapshot(store) as snapshot:
        text = exposition(snapshot).decode()
    found: dict[str, Series] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series = found.setdefault(sample.name, {})
            key = frozenset(sample.labels.items())
            assert key not in series, (sample.name, key)
            series[key] = sample.value
    return found


def logged(*events: Event) -> Log:
    log = Log()
    for number, event in enumerate(events, start=1):
        log.append(event, "e", number)
    return log


def tool_end(at_ns: int, **changes: Any) -> Event:
    return chain_end(at_ns, **{"run_type": "tool", "name": "search", "is_root": False, **changes})


def call_of(model: str, number: int, **changes: Any) -> Event:
    return model_call(START_NS + number, request_model=model, model=model, **changes)


def test_a_store_without_figures_has_every_family(store: Store) -> None:
    with open_snapshot(store) as snapshot:
        lines = exposition(snapshot).decode().splitlines()
    types = dict(line.split()[2:4] for line in lines if line.startswith("# TYPE"))
    assert types == {
        "langchain_llm_calls_total": "counter",
        "langchain_chain_calls_total": "counter",
        "langchain_tool_calls_total": "counter",
        "langchain_llm_duration_seconds": "histogram",
        "langchain_chain_duration_seconds": "histogram",
        "langchain_llm_active_calls": "gauge",
        "langchain_token_usage": "summary",
        "runtap_time_to_first_token_seconds": "histogram",
        "runtap_cost_dollars_total": "counter",
        "runtap_unpriced_calls_total": "counter",
        "runtap_unmetered_calls_total": "counter",
        "runtap_errors_total": "counter",
        "runtap_scores_total": "counter",
        "runtap_score_points": "gauge",
        "runtap_sessions": "gauge",
        "runtap_ledger_events": "gauge",
        "runtap_ledger_dropped_events": "gauge",
        "runtap_complete_to_timestamp_seconds": "gauge",
        "runtap_figures_revision": "gauge",
        "runtap_metrics_folded": "gauge",
    }
    assert {line.split()[2] for line in lines if line.startswith("# HELP")} == types.keys()
    assert "runtap_complete_to_timestamp_seconds" not in scrape(store)


def test_calls_count_by_status_and_a_failed_one_under_the_model_that_answers(store: Store, tools: WorkerTools) -> None:
    failed = {"status": "error", "model": None, "usage": None, "usage_source": "none"}
    tools.apply(
        logged(
            model_call(START_NS),
            model_call(START_NS + 1),
            model_call(START_NS + 2, **failed, error=failure()),
            model_call(START_NS + 3, **{**failed, "status": "cancelled"}),
            model_call(START_NS + 4, status="interrupted", service="search"),
            chain_end(START_NS + 5),
            chain_end(START_NS + 6, status="error", error=failure(origin=False)),
            tool_end(START_NS + 7),
            tool_end(START_NS + 8, status="error", error=failure(fingerprint="f2")),
            # Named by a model, and never there.
            tool_end(START_NS + 9, name="serach", status="error", error=failure(fingerprint="f2")),
            chain_end(START_NS + 10, run_type="retriever"),
        )
    )
    found = scrape(store)
    assert found["langchain_llm_calls_total"] == {
        **{labels(model=MODEL, status=one): n for one, n in zip(STATUSES, (2, 1, 0, 1), strict=True)},
        **{labels(model=MODEL, status=one, service="search"): n for one, n in zip(STATUSES, (0, 0, 1, 0), strict=True)},
    }
    assert found["langchain_chain_calls_total"] == {
        labels(status=one): n for one, n in zip(STATUSES, (1, 1, 0, 0), strict=True)
    }
    assert found["langchain_tool_calls_total"] == {
        **{labels(tool_name="search", status=one): n for one, n in zip(STATUSES, (1, 1, 0, 0), strict=True)},
        **{labels(tool_name="other", status=one): n for one, n in zip(STATUSES, (0, 1, 0, 0), strict=True)},
    }
    assert found["runtap_errors_total"] == {labels(type="ToolException"): 3}
    ((calls,),) = rows(store, "SELECT sum(calls) FROM cost_total")
    assert sum(found["langchain_llm_calls_total"].values()) == calls == 5


def test_durations_fall_into_the_bucket_whose_bound_they_do_not_pass(store: Store, tools: WorkerTools) -> None:
    durations = [ns for bound in DURATION_BOUNDS_NS for ns in (bound, bound + 1)]
    log = logged(*(model_call(START_NS + n, duration_ns=ns) for n, ns in enumerate(durations)), chain_end(START_NS))
    # In two commits, the second of which adds to the rows of the first.
    tools.apply(log, at_most=9)
    found = scrape(store)
    assert found["langchain_llm_duration_seconds_bucket"] == {
        labels(model=MODEL, le=bound): min(2 * n + 1, 16) for n, bound in enumerate(BOUNDS)
    }
    assert found["langchain_llm_duration_seconds_count"] == {labels(model=MODEL): 16}
    assert found["langchain_llm_duration_seconds_sum"] == {labels(model=MODEL): sum(durations) / SECOND_NS}
    assert found["langchain_chain_duration_seconds_bucket"] == {
        labels(le=bound): int(n >= 4) for n, bound in enumerate(BOUNDS)
    }
    assert found["langchain_chain_duration_seconds_sum"] == {labels(): 3.0}


def test_time_to_first_token_is_that_of_streamed_calls(store: Store, tools: WorkerTools) -> None:
    waits = [SECOND_NS // 10, SECOND_NS // 10 + 1, 61 * SECOND_NS, None]
    tools.apply(
        logged(
            *(model_call(START_NS + n, time_to_first_token_ns=wait) for n, wait in enumerate(waits)),
            call_of("never-streams", 9, time_to_first_token_ns=None),
        )
    )
    found = scrape(store)
    assert found["runtap_time_to_first_token_seconds_bucket"] == {
        labels(model=MODEL, le=bound): count
        for bound, count in {"0.1": 1, **dict.fromkeys(BOUNDS[1:-1], 2), "+Inf": 3}.items()
    }
    assert found["runtap_time_to_first_token_seconds_count"] == {labels(model=MODEL): 3}
    total_ns = sum(filter(None, waits))
    assert found["runtap_time_to_first_token_seconds_sum"] == {labels(model=MODEL): total_ns / SECOND_NS}
    assert found["langchain_llm_duration_seconds_count"] == {labels(model=MODEL): 4, labels(model="never-streams"): 1}


def test_tokens_and_money_are_those_of_the_store(store: Store, tools: WorkerTools) -> None:
    tools.apply(
        logged(
            model_call(START_NS),
            model_call(START_NS + 1),
            model_call(START_NS + 2, usage_source="cache"),
            model_call(START_NS + 3, usage=None, usage_source="none"),
            call_of("own-model", 4, provider="own", usage=Usage(input_tokens=7, output_tokens=3)),
        )
    )
    found = scrape(store)
    own, mini = {"model": "own-model", "provider": "own"}, {"model": MODEL, "provider": "openai"}
    ((cost,),) = rows(store, f"SELECT {COST} FROM cost_total WHERE provider = 'openai' AND priced_calls = 2")
    assert cost == 390_000_000
    assert found["runtap_cost_dollars_total"] == {labels(**mini): 0.00039}
    assert found["runtap_unpriced_calls_total"] == {labels(**mini): 0, labels(**own): 1}
    assert found["runtap_unmetered_calls_total"] == {labels(**mini): 1, labels(**own): 0}
    assert found["langchain_token_usage_sum"] == {
        labels(model=MODEL, type="prompt"): 2_000,
        labels(model=MODEL, type="completion"): 200,
        labels(model="own-model", type="prompt"): 7,
        labels(model="own-model", type="completion"): 3,
    }
    counts = found["langchain_token_usage_count"]
    assert [counts[labels(model=name, type="prompt")] for name in (MODEL, "own-model")] == [2, 1]


def test_calls_that_have_not_ended_are_active(store: Store, tools: WorkerTools) -> None:
    started = {"run_type": "llm", "is_root": False, "request_model": "gpt-4o-mini"}
    tools.apply(
        logged(
            model_call(START_NS),
            run_start(START_NS + 1, run_id="a", **started),
            run_start(START_NS + 2, run_id="b", **{**started, "request_model": "never-answered"}),
            run_start(START_NS + 3, run_id="c", **started),
            run_start(START_NS + 4, run_id="chain"),
        )
    )
    # The end came to another partition.
    other = Log()
    other.append(model_call(START_NS + 5, run_id="c"), "f", 1)
    tools.apply(other, 1)
    assert scrape(store)["langchain_llm_active_calls"] == {labels(model=MODEL): 1, labels(model="other"): 1}


def test_the_pipeline_shows_where_events_are(store: Store, tools: WorkerTools) -> None:
    log = logged(model_call(START_NS, session_id="s", user_id="u"), model_call(START_NS + SECOND_NS, session_id="t"))
    # Number 3 never came.
    log.append(report(START_NS + 2 * SECOND_NS, dropped={"buffer_full": {"run.ended": 4}}, closing=True), "e", 4)
    tools.apply(log)
    found = scrape(store)
    states = {"captured": 8, "applied": 3, "in_flight": 0, "lost": 1, "quarantined": 0}
    assert found["runtap_ledger_events"] == {bare(state=state): count for state, count in states.items()}
    assert found["runtap_ledger_dropped_events"] == {bare(reason="buffer_full"): 4}
    assert found["runtap_sessions"] == {bare(): 2}
    assert found["runtap_metrics_folded"] == {bare(): 0}
    assert found["runtap_complete_to_timestamp_seconds"] == {bare(): START_NS / SECOND_NS + 2}
    before = found["runtap_figures_revision"][bare()]
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE positions SET epoch = epoch + 1 WHERE projection = 'cost'")
    assert scrape(store)["runtap_figures_revision"][bare()] == before + 1


def test_the_least_used_names_of_a_service_with_too_many_series_are_other(
    store: Store, tools: WorkerTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = [tool_end(START_NS + n, name=f"tool-{n % 20}") for n in range(30)]
    events += [tool_end(START_NS + 50 + n, name=f"tool-{n}", service="small") for n in range(3)]
    tools.apply(logged(*events, call_of("rare", 100)))
    whole = scrape(store)
    monkeypatch.setattr(metrics, "MAX_SERIES_A_SERVICE", 71)
    found = scrape(store)
    calls = found["langchain_tool_calls_total"]
    assert sum(calls.values()) == sum(whole["langchain_tool_calls_total"].values())
    named = {dict(key)["tool_name"] for key in calls if ("service", "checkout") in key}
    # 71 less 37 for all that may be `other` is room for eight, of the ten that were called twice.
    assert named == {*(f"tool-{n}" for n in range(8)), "other"}
    assert {dict(key)["tool_name"] for key in calls if ("service", "small") in key} == {"tool-0", "tool-1", "tool-2"}
    assert {dict(key)["model"] for key in found["langchain_llm_calls_total"]} == {"other"}
    assert found["langchain_llm_duration_seconds_sum"] == {labels(model="other"): 2.0}
    of_service = sum(("service", "checkout") in key for series in found.values() for key in series)
    assert of_service <= 71
    lost_lines = sum(key not in found[name] for name, series in whole.items() for key in series)
    assert found["runtap_metrics_folded"] == {bare(): lost_lines}


def test_failures_that_get_a_name_leave_other_and_the_revision_tells(store: Store, tools: WorkerTools) -> None:
    failed = {"status": "error", "model": None, "usage": None, "usage_source": "none", "error": failure()}
    log = logged(
        model_call(START_NS),
        model_call(START_NS + 1, **failed, request_model="late"),
        model_call(START_NS + 2, **failed, request_model="alias"),
    )
    partition = tools.apply(log)

    def seen() -> tuple[dict[str, float], float]:
        found = scrape(store)
        calls = ((dict(key), count) for key, count in found["langchain_llm_calls_total"].items())
        failures = {key["model"]: count for key, count in calls if key["status"] == "error"}
        return failures, found["runtap_figures_revision"][bare()]

    found, revision = seen()
    assert found == {MODEL: 0, "other": 2}
    # A success of a name itself, of a model that has succeeded before, and one that changes nothing.
    for number, (event, expected, moves) in enumerate(
        (
            (call_of("late", 3), {MODEL: 0, "late": 1, "other": 1}, True),
            (model_call(START_NS + 4, request_model="alias"), {MODEL: 1, "late": 1}, True),
            (model_call(START_NS + 5, request_model="alias"), {MODEL: 1, "late": 1}, False),
        ),
        start=4,
    ):
        log.append(event, "e", number)
        partition.commit(partition.fold(log.since(partition.next_offset)))
        before, (found, revision) = revision, seen()
        assert (found, revision != before) == (expected, moves)


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\\nb", 'a\\"} 1\nx{y="', "é 𝛑 \u202e", "{}", "a\rb\u2028c"])
def test_hostile_names_come_out_as_they_are(name: str, store: Store, tools: WorkerTools) -> None:
    of = {"service": name, "environment": name}
    tools.apply(logged(call_of(name, 0, provider=name, **of), tool_end(START_NS + 1, name=name, **of)))
    found = scrape(store)
    assert labels(model=name, status="success", **of) in found["langchain_llm_calls_total"]
    assert labels(tool_name=name, status="success", **of) in found["langchain_tool_calls_total"]
    assert labels(model=name, provider=name, **of) in found["runtap_unpriced_calls_total"]
    assert not any(key for series in found.values() for key in series for label in key if label[0] in ("user", "x"))


def test_promtool_finds_nothing(store: Store, tools: WorkerTools) -> None:
    tools.apply(
        logged(
            model_call(START_NS),
            chain_end(START_NS + 1),
            tool_end(START_NS + 2, name='a"\n\\', status="error", error=failure()),
            tool_end(START_NS + 3, name='a"\n\\'),
        )
    )
    with open_snapshot(store) as snapshot:
        check_with_promtool(exposition(snapshot))
