"""What LangSmith is told of runs: places in traces, costs, names, filters; and its variables."""

from __future__ import annotations

import json
import uuid
from decimal import Decimal
from typing import Any

import pytest
from langsmith.run_trees import _parse_dotted_order
from msgspec import Raw

from runtap_consumers.forward.account import find_account
from runtap_consumers.forward.choice import RunChoice
from runtap_consumers.forward.places import Places, langsmith_id
from runtap_consumers.forward.runs import ended_run, usage_metadata
from runtap_consumers.pricing.table import PriceTable
from runtap_consumers.projections.batch import price_call
from runtap_schemas import RunEnded, RunError, RunStarted, SettingsError, Usage
from samples import SECOND_NS, START_NS, chain_end, model_call

ROOT, MIDDLE, CALL = (str(uuid.UUID(int=number)) for number in (1, 2, 3))
PRICES = PriceTable.load()


def started(run_id: str, parent: str | None, at_ns: int = START_NS, trace: str = ROOT) -> RunStarted:
    facts: Any = {"service": "shop", "environment": "tests", "run_type": "chain", "name": "step"}
    return RunStarted(at_ns=at_ns, run_id=run_id, trace_id=trace, parent_run_id=parent, is_root=parent is None, **facts)


def call(parent: str | None = MIDDLE, **changes: Any) -> RunEnded:
    return model_call(**{"run_id": CALL, "trace_id": ROOT, "parent_run_id": parent, "root_name": "root", **changes})


def written(event: RunEnded, places: Places | None = None) -> dict[str, Any]:
    """A run as it is sent."""
    operation = ended_run(event, START_NS, (places or Places()).position(event), ("post",), PRICES)
    parts = {name: json.loads(value, parse_float=Decimal) for name, value in operation.parts.items()}
    return {**json.loads(operation.fields), **parts}


def ids_of(dotted_order: str) -> list[str]:
    return [str(run_id) for _, run_id in _parse_dotted_order(dotted_order)]


def test_a_run_stands_below_all_of_its_ancestors_by_their_own_starts() -> None:
    places = Places()
    for event in (started(ROOT, None, START_NS - 9 * SECOND_NS), started(MIDDLE, ROOT, START_NS - 5 * SECOND_NS)):
        places.note(event)
    position = places.position(call())
    assert places.is_whole(call())
    assert (position.run_id, position.parent_run_id, position.trace_id) == (CALL, MIDDLE, ROOT)
    assert position.dotted_order == (
        f"20260302T095951000000Z{ROOT}.20260302T095955000000Z{MIDDLE}.20260302T095958000000Z{CALL}"
    )


def test_ancestors_that_were_forgotten_are_named_by_their_ids_alone() -> None:
    places = Places()
    assert not places.is_whole(call())
    position = places.position(call())
    assert ids_of(position.dotted_order) == [ROOT, MIDDLE, CALL]
    assert (position.parent_run_id, position.trace_id) == (MIDDLE, ROOT)
    assert ids_of(places.position(call(parent=ROOT)).dotted_order) == [ROOT, CALL]


def test_a_run_below_what_nobody_taps_is_the_root_of_its_own_trace() -> None:
    position = Places().position(call(parent=ROOT, root_name=None))
    assert (position.parent_run_id, position.trace_id, ids_of(position.dotted_order)) == (None, CALL, [CALL])


def test_runs_that_name_each_other_as_parents_end_somewhere() -> None:
    places = Places()
    places.note(started(ROOT, MIDDLE))
    places.note(started(MIDDLE, ROOT))
    position = places.position(call())
    assert ids_of(position.dotted_order) == [ROOT, MIDDLE, CALL]
    itself = places.position(call(parent=CALL))
    assert (itself.parent_run_id, ids_of(itself.dotted_order)) == (None, [CALL])


def test_what_is_remembered_is_bounded_and_what_was_told_is_known_to_be_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runtap_consumers.forward.places._MOST_OPEN", 3)
    monkeypatch.setattr("runtap_consumers.forward.places._MOST_ENDED", 2)
    places = Places()
    for number in range(5):
        places.note(started(f"open-{number}", None, START_NS + number))
        places.mark(f"open-{number}", is_posted=True)
        places.note(chain_end(run_id=f"ended-{number}"))
    assert [places.find(f"open-{number}") is not None for number in range(5)] == [False, False, True, True, True]
    assert [places.find(f"ended-{number}") is not None for number in range(5)] == [False] * 3 + [True] * 2
    assert places.forgot_before_ns == START_NS + 2


def test_an_id_that_is_no_uuid_becomes_one_that_stays_the_same() -> None:
    assert langsmith_id(CALL.upper().replace("-", "")) == CALL
    assert langsmith_id("run 7") == langsmith_id("run 7") == "aeecc1c7-4047-52a5-b6e7-e96c84be7b09"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"usage": Usage(input_tokens=300_000, output_tokens=9_999, cache_read_tokens=7, cache_write_1h_tokens=11)},
        {"provider": "anthropic", "model": "claude-sonnet-4-5", "usage": Usage(input_tokens=999_983, output_tokens=17)},
        {"reported_cost_usd": "0.000000000123"},
        {"usage_source": "cache"},
        {"model": "nobody-knows-it"},
        {"usage": None},
        {"seller_host": "api.deepseek.com", "model": "deepseek-chat"},
    ],
)
def test_the_cost_is_runtaps_own_to_the_picodollar(changes: dict[str, Any]) -> None:
    event = call(**changes)
    metadata = written(event)["extra"]["metadata"]
    if event.seller_host is not None:
        event.provider = PRICES.seller_at(event.provider, event.seller_host)
    cost = price_call(event, event, event.at_ns, PRICES).cost_picodollars
    usage = metadata.get("usage_metadata", {})
    assert usage.get("total_cost") == (None if cost is None else Decimal(cost).scaleb(-12))
    if "input_cost" in usage:
        assert usage["input_cost"] + usage["output_cost"] == usage["total_cost"]
    assert ("input_cost" in usage) == (cost is not None and event.reported_cost_usd is None)


def test_an_unknown_count_is_left_out() -> None:
    assert usage_metadata(call(usage=Usage(input_tokens=5), model="?"), START_NS, PRICES) == {"input_tokens": 5}
    assert usage_metadata(call(usage=None), START_NS, PRICES) is None


def test_a_failed_run_says_why_and_content_is_wrapped_where_it_is_no_object() -> None:
    error = RunError(type="KeyError", category="tool", message="no such table", fingerprint="f")
    run = written(call(status="error", error=error, inputs=Raw(b'["hi"]'), outputs=Raw(b"[1]"), session_id="s"))
    assert run["error"] == "KeyError: no such table"
    assert (run["inputs"], run["outputs"]) == ({"prompts": ["hi"]}, {"generations": [1]})
    assert run["extra"]["metadata"].items() >= {"session_id": "s", "runtap_status": "error"}.items()
    assert run["events"][0]["time"] == "2026-03-02T09:59:58.250000Z"
    assert (run["start_time"], run["end_time"]) == (
        "2026-03-02T09:59:58.000000Z",
        "2026-03-02T10:00:00.000000Z",
    )
    assert "inputs" not in written(call())


@pytest.mark.parametrize(
    ("choice", "is_wanted"),
    [
        (RunChoice(), True),
        (RunChoice(service="checkout", run_type="llm", name="ChatOpenAI", status="ok"), True),
        (RunChoice(model="gpt-4o-mini"), True),
        (RunChoice(model="gpt-4o-mini-2024-07-18"), True),
        (RunChoice(tag="vip", metadata=("team", "search")), True),
        (RunChoice(metadata=("plan", "7")), True),
        (RunChoice(metadata=("beta", "true")), True),
        (RunChoice(service="shop"), False),
        (RunChoice(status="error"), False),
        (RunChoice(model="gpt-4o"), False),
        (RunChoice(tag="vi"), False),
        (RunChoice(metadata=("team", "sear")), False),
        (RunChoice(metadata=("none", "None")), False),
    ],
)
def test_filters_are_those_of_runs(choice: RunChoice, is_wanted: bool) -> None:
    event = call(tags=["vip"], metadata={"team": "search", "plan": 7, "beta": True})
    assert choice.takes(event) is is_wanted


def test_a_sample_has_its_share_and_grows_with_it() -> None:
    ids = [str(uuid.uuid4()) for _ in range(5_000)]
    tenth, half = ({one for one in ids if RunChoice(sample=share).samples(one)} for share in (0.1, 0.5))
    assert 400 < len(tenth) < 600
    assert tenth < half
    assert all(RunChoice(sample=1).samples(one) and not RunChoice(sample=0).samples(one) for one in ids)


def test_variables_are_read_as_langsmiths_client_reads_them() -> None:
    found = find_account({"LANGCHAIN_ENDPOINT": '"https://eu.api.smith.langchain.com/"', "LANGSMITH_API_KEY": " key "})
    assert (found.endpoint, found.headers()) == ("https://eu.api.smith.langchain.com", {"x-api-key": "key"})
    assert find_account({"LANGSMITH_ENDPOINT": "http://10.0.0.7:1984/api"}).headers() == {}
    both = find_account({"LANGSMITH_API_KEY": "a", "LANGCHAIN_API_KEY": "b", "LANGSMITH_WORKSPACE_ID": "w"})
    assert both.headers() == {"x-api-key": "a", "x-tenant-id": "w"}


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"LANGSMITH_ENDPOINT": "api.smith.langchain.com", "LANGSMITH_API_KEY": "SECRET"},
        {"LANGSMITH_ENDPOINT": "https://user:SECRET@host", "LANGSMITH_API_KEY": "key"},
        {"LANGSMITH_ENDPOINT": "https://host:99999", "LANGSMITH_API_KEY": "SECRET"},
        {"LANGSMITH_ENDPOINT": "https://host/?key=SECRET", "LANGSMITH_API_KEY": "SECRET"},
        {"LANGSMITH_API_KEY": "SECRET\nx-evil: 1"},
        {"LANGSMITH_API_KEY": "SECRET\u0430"},
    ],
)
def test_variables_that_cannot_work_stop_it_and_are_not_shown(variables: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as raised:
        find_account(variables)
    assert "LANGSMITH_" in str(raised.value)
    assert "SECRET" not in str(raised.value)
