"""`runtap ledger` and `runtap dead-letters`, over stores that workers filled."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from partition_setting import WorkerTools
from runtap_consumers.figures.ledger import build_ledger
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.snapshot import open_snapshot
from runtap_schemas import SkippedRange
from samples import SECOND_NS, START_NS, Log, model_call, report

UTC = ZoneInfo("UTC")


def ledger_of(store: Store) -> dict[str, Any]:
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
    log.append_value(b'{"version":1,"emitter":"e1","sequence":4,"type":"run.ended","at_ns":-5}')
    log.append(model_call(START_NS + 6), "e1", 6)
    log.append_value(b'{"version":1,"emitter":"e1","sequence":7,"type":"run.dreamt"}')
    log.append(model_call(START_NS + 9 * 86_400 * SECOND_NS), "e1", 9, log_time_ns=START_NS)
    skip = SkippedRange(emitter="e1", partition=0, first=8, last=8, reason="too_large")
    facts = {"dropped": {"buffer_full": {"run.started": 3}}, "skipped": [skip], "superseded": 2, "closing": True}
    log.append(report(1, 15, {0: 10}, START_NS + 20, **facts), "e1", 10)
    return log


def test_each_emitters_row_adds_up_with_reasons(store: Store, tools: WorkerTools) -> None:
    tools.apply(troubled_log())
    ledger = ledger_of(store)
    (row,) = ledger["emitters"]
    assert row == {
        "emitter": "e1",
        "service": "checkout",
        "environment": "test",
        "host": "host-1",
        "process_id": 1,
        "state": "closed",
        "last_heard": row["last_heard"],
        # Two of the fifteen were starts that nobody needed.
        "captured": 13,
        "applied": 7,
        "in_flight": 0,
        "dropped": {"buffer_full": 3},
        "lost": 2,
        "quarantined": 1,
        "handed_over": 0,
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
        (name, 7, 1) for name in ("cost", "errors", "ledger", "performance", "runs", "sessions")
    ]
    assert ledger["skewed_events"] == {"checkout": 1}
    assert ledger["unknown_event_types"] == {"run.dreamt": 1}


def test_the_headline_is_of_the_projection_that_lags_most(store: Store, tools: WorkerTools) -> None:
    log = troubled_log()
    tools.apply(log, projections=("performance", "ledger"))
    slow = Log()
    slow.records = log.records[:2]
    tools.apply(slow, projections=("cost",))
    ledger = ledger_of(store)
    assert ledger["projection"] == "cost"
    assert (ledger["applied"], ledger["in_flight"], ledger["lost"]) == (2, 7, 1)
    assert ledger["captured"] == 13


def test_a_vanished_emitter_is_named_and_captured_at_least_what_it_said(store: Store, tools: WorkerTools) -> None:
    log = Log()
    log.append(model_call(START_NS), "killed", 1)
    log.append(report(1, 5, {0: 2}, START_NS + SECOND_NS), "killed", 2)
    for number in range(1, 14):
        log.append(report(number, number, {0: number}, START_NS + number * 10 * SECOND_NS), "alive", number)
    tools.apply(log)
    ledger = ledger_of(store)
    states = {row["emitter"]: (row["state"], row["captured"], row["in_flight"]) for row in ledger["emitters"]}
    # Three of its events were waiting when it was killed: nobody will see them, and nobody calls them applied.
    assert states == {"killed": ("vanished", 5, 3), "alive": ("open", 13, 0)}
    assert ledger["captured_is_at_least"] is True
    shown = runtap(store, "ledger").stdout.decode()
    assert "captured at least 18 = applied 15 + in flight 3 + dropped 0 + lost 0 + unreadable 0" in shown
    assert "vanished" in shown


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
