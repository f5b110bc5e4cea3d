"""`runtap ledger` and `runtap dead-letters`, over stores that workers filled."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from partition_setting import WorkerTools
from runtap_consumers.figures.ledger import Ledger, build_ledger
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.snapshot import open_snapshot
from runtap_schemas import LaneAbandoned, SkippedRange
from runtap_schemas.events import PARTITION_GONE
from samples import SECOND_NS, START_NS, Log, framed, id_of, model_call, report

UTC = ZoneInfo("UTC")


def ledger_of(store: Store) -> Ledger:
    with open_snapshot(store) as snapshot:
        return build_ledger(snapshot, UTC)


def runtap(store: Store, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[bytes]:
    """A process of its own: what it exports may be no text."""
    url = store.engine.url.render_as_string(hide_password=False).replace("+psycopg", "")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RUNTAP_")}
    done = subprocess.run(
        [sys.executable, "-m", "runtap_consumers", *arguments],
        env={**inherited, "RUNTAP_DATABASE_URL": url},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr.decode()
    return done


def troubled_log() -> Log:
    """An emitter of 10 events with one each repeated, unreadable, lost without a word, and skipped with a reason."""
    log = Log()
    for number in (1, 2, 2, 3):
        log.append(model_call(START_NS + number), "e1", number)
    log.append_value(framed([b'{"type":"run.ended","at_ns":-5}'], "e1", 4))
    log.append(model_call(START_NS + 6), "e1", 6)
    log.append_value(framed([b'{"type":"run.dreamt"}'], "e1", 7))
    log.append(model_call(START_NS + 9 * 86_400 * SECOND_NS), "e1", 9, log_time_ns=START_NS)
    skip = SkippedRange(first=8, last=8, reason="too_large")
    facts = {"dropped": {"buffer_full": {"run.started": 3}}, "skipped": [skip], "superseded": 2, "closing": True}
    log.append(report(START_NS + 20, **facts), "e1", 10)
    return log


def test_each_emitters_row_adds_up_with_reasons(store: Store, tools: WorkerTools) -> None:
    tools.apply(troubled_log())
    ledger = ledger_of(store)
    (row,) = ledger["emitters"]
    assert row == {
        "emitter": id_of("e1"),
        "service": "checkout",
        "environment": "test",
        "host": "host-1",
        "process_id": 1,
        "state": "closed",
        "last_heard": row["last_heard"],
        "captured_is_at_least": False,
        # Two of the fifteen were starts that nobody needed.
        "captured": 13,
        "applied": 7,
        "in_flight": 0,
        "dropped": {"buffer_full": 3},
        "lost": 2,
        "quarantined": 1,
        "lost_by_reason": {"too_large": 1, "unannounced": 1},
        "repeats": 1,
        "content_dropped": 0,
    }
    (service,) = ledger["services"]
    for summed in (service, ledger):
        assert summed["captured"] == 7 + 0 + 3 + 2 + 1
        assert summed["lost_by_reason"] == row["lost_by_reason"]
        assert summed["captured_is_at_least"] is False
    assert [(one["projection"], one["applied"], one["repeats"]) for one in ledger["projections"]] == [
        (name, 7, 1) for name in ("contents", "cost", "errors", "ledger", "performance", "runs", "sessions")
    ]
    assert ledger["skewed_events"] == {"checkout": 1}
    assert ledger["unknown_event_types"] == {"run.dreamt": 1}


def test_the_headline_is_of_the_projection_that_lags_most(store: Store, tools: WorkerTools) -> None:
    log = troubled_log()
    tools.apply(log, projections=("performance", "ledger"))
    slow = Log()
    slow.records = log.records[:2]
    partition = tools.apply(slow, projections=("cost",))
    ledger = ledger_of(store)
    assert ledger["projection"] == "cost"
    assert (ledger["applied"], ledger["in_flight"], ledger["lost"]) == (2, 8, 0)
    assert ledger["captured"] == 13
    # Once it has read all that was there when the last number was heard, the others will not come.
    partition.note_caught_up(START_NS + SECOND_NS)
    ledger = ledger_of(store)
    assert (ledger["applied"], ledger["in_flight"], ledger["lost"], ledger["captured"]) == (2, 0, 8, 13)
    assert ledger["lost_by_reason"] == {"too_large": 1, "unannounced": 7}


def test_a_vanished_emitter_is_named_and_captured_at_least_what_it_said(store: Store, tools: WorkerTools) -> None:
    log = Log()
    log.append(model_call(START_NS), "killed", 1)
    log.append(report(START_NS + SECOND_NS, dropped={"buffer_full": {"run.ended": 3}}), "killed", 2)
    for number in range(1, 14):
        log.append(report(START_NS + number * 10 * SECOND_NS), "alive", number)
    tools.apply(log)
    ledger = ledger_of(store)
    states = {row["emitter"]: (row["state"], row["captured"]) for row in ledger["emitters"]}
    assert states == {id_of("killed"): ("vanished", 5), id_of("alive"): ("open", 13)}
    assert ledger["captured_is_at_least"] is True
    shown = " ".join(runtap(store, "ledger").stdout.decode().split())
    assert (
        "captured at least 18 = applied 15 + in flight 0 + dropped 3 (buffer_full 3) + lost 0 + unreadable 0" in shown
    )
    assert "vanished" in shown


@pytest.mark.parametrize(("step_seconds", "state"), [(10, "vanished"), (30, "vanished"), (40, "silent")])
def test_an_outage_ages_nobody(store: Store, tools: WorkerTools, step_seconds: int, state: str) -> None:
    log = Log()
    log.append(model_call(START_NS), "killed", 1)
    for number in range(1, 40):
        log.append(report(START_NS + number * step_seconds * SECOND_NS), "alive", number)
    tools.apply(log)
    states = {row["emitter"]: row["state"] for row in ledger_of(store)["emitters"]}
    assert states == {id_of("killed"): state, id_of("alive"): "open"}


def test_an_emitter_that_holds_complete_to_is_named_and_can_be_forgotten(store: Store, tools: WorkerTools) -> None:
    log = Log()
    log.append(model_call(START_NS), "e1", 1)
    # The only one there is: nobody else reports, so that this may be an outage.
    tools.apply(log).note_caught_up(START_NS + 3_600 * SECOND_NS)
    ledger = ledger_of(store)
    assert (ledger["complete_to"], ledger["held_by"]) == ("2026-03-02T10:00:00.000000Z", id_of("e1"))
    (row,) = ledger["emitters"]
    # Known by its events alone, it has their service.
    assert (row["state"], row["service"], row["host"]) == ("silent", "checkout", None)
    assert f"runtap ledger forget {id_of('e1')}" in " ".join(runtap(store, "ledger").stdout.decode().split())
    assert b"there is no emitter 'nobody'" in runtap(store, "ledger", "forget", "nobody", code=2).stderr
    runtap(store, "ledger", "forget", id_of("e1"))
    ledger = ledger_of(store)
    assert (ledger["complete_to"], ledger["emitters"][0]["state"]) == ("2026-03-02T11:00:00.000000Z", "forgotten")
    # Heard again, it has its say again.
    log.append(model_call(START_NS + 60 * SECOND_NS), "e1", 2)
    tools.apply(log)
    assert ledger_of(store)["complete_to"] == "2026-03-02T10:01:00.000000Z"
    assert [(one["emitter"], one["struck_out"]) for one in ledger_of(store)["forgotten"]] == [(id_of("e1"), False)]


def test_an_emitter_that_is_none_of_ours_can_be_struck_out_of_every_sum(store: Store, tools: WorkerTools) -> None:
    log = Log()
    log.append(model_call(START_NS), "ours", 1)
    log.append(report(START_NS, dropped={"run.ended": {"buffer_full": 5_000_000}}), "forged", 1)
    tools.apply(log)
    assert ledger_of(store)["captured"] == 5_000_002
    runtap(store, "ledger", "forget", "--forged", id_of("forged"))
    # And whatever comes of it later.
    log.append(model_call(START_NS), "forged", 2)
    tools.apply(log)
    ledger = ledger_of(store)
    assert (ledger["captured"], ledger["applied"], ledger["dropped"]) == (1, 1, {})
    states = {row["emitter"]: (row["state"], row["captured"]) for row in ledger["emitters"]}
    assert states == {id_of("ours"): ("open", 1), id_of("forged"): ("struck out", 5_000_002)}
    (record,) = ledger["forgotten"]
    assert (record["emitter"], record["struck_out"], record["at"] is None) == (id_of("forged"), True, False)
    assert "struck out" in runtap(store, "ledger").stdout.decode()
    runtap(store, "ledger", "forget", id_of("forged"))
    assert ledger_of(store)["captured"] == 5_000_003


def test_what_an_emitter_cannot_have_captured_is_believed_of_nobody(store: Store, tools: WorkerTools) -> None:
    log = Log()
    log.append(model_call(START_NS), "honest", 1)
    log.append(report(START_NS, dropped={"run.ended": {"buffer_full": 10**15}}), "forger", 1)
    for place, (name, last) in enumerate((("honest", 2**53 - 1), ("never-heard", 2**53 - 1), ("honest", 900)), start=2):
        gone = LaneAbandoned(at_ns=START_NS, emitter=id_of(name), first=2, last=last, reason="expired")
        log.append(gone, "forger", place)
    tools.apply(log)
    ledger = ledger_of(store)
    # 1 and 899 of the honest one, its last abandonment being possible; 3 of the forger, and the report unreadable.
    assert (ledger["captured"], ledger["applied"], ledger["quarantined"], ledger["dropped"]) == (904, 4, 1, {})
    assert ledger["impossible"] == 2
    assert {row["emitter"] for row in ledger["emitters"]} == {id_of("honest"), id_of("forger")}


def test_what_belongs_to_no_lane_is_counted_outside_of_the_sum(store: Store, tools: WorkerTools) -> None:
    log = Log()
    log.append(model_call(START_NS), "e1", 1)
    log.append_value(b"not json")
    log.append_value(framed([b"{}"] * 3, "e1", 10**12))
    log.append_value(framed([model_call(START_NS)], "e1", 2).replace(id_of("e1").encode(), id_of("e2").encode()))
    tools.apply(log)
    ledger = ledger_of(store)
    assert (ledger["captured"], ledger["applied"], ledger["foreign"], ledger["impossible"]) == (1, 1, 2, 3)
    shown = runtap(store, "ledger").stdout.decode()
    assert "2 records of no emitter, outside of these sums" in shown
    assert "3 events with impossible numbers, outside of these sums" in shown
    assert len(runtap(store, "dead-letters", "list", "--json").stdout.splitlines()) == 3


def test_numbers_that_somebody_gave_up_are_lost_with_the_reason(store: Store, tools: WorkerTools) -> None:
    log = Log()
    log.append(model_call(START_NS), "e1", 1)
    said = report(START_NS, dropped={"buffer_full": {"run.ended": 2}}, closing=True)
    for emitter, last in (("e1", 5), ("never met", 4)):
        of = id_of(emitter)
        event = LaneAbandoned(at_ns=START_NS, emitter=of, first=last - 3, last=last, reason="too_old", report=said)
        log.append(event, "e2", 1 if last == 5 else 2, log_time_ns=START_NS + SECOND_NS)
    partition = tools.apply(log)
    ledger = ledger_of(store)
    # Captured: 1 + 4 + 2 dropped, 4 + 2, and two announcements.
    assert (ledger["captured"], ledger["applied"], ledger["in_flight"], ledger["lost"]) == (15, 3, 8, 0)
    partition.note_caught_up(START_NS + 2 * SECOND_NS)
    ledger = ledger_of(store)
    assert (ledger["captured"], ledger["applied"], ledger["in_flight"], ledger["lost"]) == (15, 3, 0, 8)
    assert ledger["lost_by_reason"] == {"too_old": 8}
    states = {row["emitter"]: row["state"] for row in ledger["emitters"]}
    assert states == {id_of("e1"): "closed", id_of("never met"): "closed", id_of("e2"): "open"}


@pytest.mark.parametrize(("reason", "state"), [("too_large", "open"), ("expired", "open"), (PARTITION_GONE, "closed")])
def test_an_emitter_of_which_some_numbers_were_given_up_holds_complete_to_until_the_rest_came(
    store: Store, tools: WorkerTools, reason: str, state: str
) -> None:
    log = Log()
    log.append(model_call(START_NS), "adopted", 1)
    given_up = LaneAbandoned(at_ns=START_NS, emitter=id_of("adopted"), first=2, last=2, reason=reason)
    log.append(given_up, "adopter", 1, log_time_ns=START_NS + SECOND_NS)
    log.append(report(START_NS + 5 * SECOND_NS, closing=True), "adopter", 2)
    tools.apply(log).note_caught_up(START_NS + 9 * SECOND_NS)
    ledger = ledger_of(store)
    states = {row["emitter"]: row["state"] for row in ledger["emitters"]}
    assert states == {id_of("adopted"): state, id_of("adopter"): "closed"}
    waits = state == "open"
    assert ledger["complete_to"] == ("2026-03-02T10:00:00.000000Z" if waits else "2026-03-02T10:00:09.000000Z")
    assert ledger["held_by"] == (id_of("adopted") if waits else None)
    assert ledger["lost_by_reason"] == {reason: 1}


@pytest.mark.parametrize("at_most", [None, 1], ids=["in one commit", "in three"])
def test_counters_that_step_back_are_not_believed(store: Store, tools: WorkerTools, at_most: int | None) -> None:
    log = Log()
    for number, (dropped, superseded) in enumerate(((5, 2), (3, 4), (4, 1)), start=1):
        facts = {"dropped": {"buffer_full": {"run.ended": dropped}}, "superseded": superseded}
        log.append(report(START_NS + number, **facts), "e1", number)
    tools.apply(log, at_most=at_most)
    ledger = ledger_of(store)
    assert (ledger["captured"], ledger["dropped"]) == (3 + 5, {"buffer_full": 5})


def test_offsets_that_retention_deleted_unread_are_shown(store: Store, tools: WorkerTools) -> None:
    log = troubled_log()
    first = Log()
    first.records = log.records[:2]
    partition = tools.apply(first, projections=("cost",))
    partition.load(0)
    partition.skip_lost(5, START_NS)
    tools.apply(log, projections=("cost",))
    assert ledger_of(store)["incidents"] == [
        {
            "projection": "cost",
            "partition": 0,
            "incarnation": 1,
            "kind": "retention",
            "first_offset": 2,
            "last_offset": 4,
            "at": "2026-03-02T10:00:00.000000Z",
        }
    ]
    assert "retention deleted offsets 2 to 4 (3) before they were read" in runtap(store, "ledger").stdout.decode()


def test_the_json_of_the_command_is_the_ledger(store: Store, tools: WorkerTools) -> None:
    tools.apply(troubled_log())
    assert json.loads(runtap(store, "ledger", "--json").stdout) == ledger_of(store)


def test_an_empty_ledger_says_so(store: Store) -> None:
    assert "There is nothing yet" in runtap(store, "ledger").stdout.decode()
    assert json.loads(runtap(store, "ledger", "--json").stdout)["captured"] == 0


ODD = b"\x1b[2J\xff\x00 not text"


def unreadable_log() -> Log:
    log = Log()
    log.append_value(b"not json")
    log.append_value(None)
    log.append_value(ODD)
    return log


def test_dead_letters_are_listed_and_shown_by_id_and_by_place(store: Store, tools: WorkerTools) -> None:
    tools.apply(unreadable_log(), number=3)
    listed = [json.loads(line) for line in runtap(store, "dead-letters", "list", "--json").stdout.splitlines()]
    assert [(row["partition"], row["offset"], row["value_bytes"]) for row in listed] == [
        (3, 2, 15),
        (3, 1, 0),
        (3, 0, 8),
    ]
    assert len(runtap(store, "dead-letters", "list", "--json", "--limit", "1").stdout.splitlines()) == 1
    assert listed[0]["id"] in runtap(store, "dead-letters", "list").stdout.decode()
    by_id = runtap(store, "dead-letters", "show", listed[2]["id"]).stdout.decode()
    assert by_id == runtap(store, "dead-letters", "show", "3/0").stdout.decode()
    assert "offset: 0" in by_id
    assert "malformed" in by_id
    assert "value: 8 bytes\nnot json\n" in by_id
    assert "value: none" in runtap(store, "dead-letters", "show", "3/1").stdout.decode()
    binary = runtap(store, "dead-letters", "show", "3/2").stdout
    assert b"\x1b" not in binary
    assert b"1b 5b 32 4a ff 00" in binary
    assert b"no dead letter '3/9'" in runtap(store, "dead-letters", "show", "3/9", code=2).stderr


def test_dead_letters_are_exported_with_every_byte(store: Store, tools: WorkerTools, tmp_path: Path) -> None:
    tools.apply(unreadable_log())
    target = tmp_path / "letters.jsonl"
    assert runtap(store, "dead-letters", "export", str(target)).stderr == b"3 dead letters written\n"
    exported = [json.loads(line) for line in target.read_bytes().splitlines()]
    assert [row["offset"] for row in exported] == [0, 1, 2]
    assert [row["value"] and base64.b64decode(row["value"]) for row in exported] == [b"not json", None, ODD]
    assert {base64.b64decode(row["key"]) for row in exported} == {b"key"}
    assert all(row["cause"] for row in exported)
    assert runtap(store, "dead-letters", "export", "-", "--format", "raw").stdout == b"not json\n\n" + ODD + b"\n"
    assert b"cannot write" in runtap(store, "dead-letters", "export", str(tmp_path), code=2).stderr
