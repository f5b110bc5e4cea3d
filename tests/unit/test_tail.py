"""What the live stream shows of a record."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

import pytest

from runtap_consumers.cli.tail import (
    Decoded,
    Entry,
    Tokens,
    describe,
    entries_of,
    event_types,
    is_wanted,
    json_line,
)
from runtap_consumers.kafka.record_tail import TailedRecord
from runtap_schemas import (
    LaneAbandoned,
    RunNoted,
    RunScored,
    RunStreamed,
    Skipped,
    Unreadable,
    encode_event,
)
from samples import (
    START_NS,
    an_alert,
    chain_end,
    failure,
    framed,
    id_of,
    model_call,
    report,
    run_start,
    session_start,
)

UTC = ZoneInfo("UTC")
RECORD = TailedRecord(3, 17, START_NS, b"key", b"value")


def entry(event: Decoded) -> Entry:
    return Entry(RECORD, b"line", event, "emitter-1")


def shown(event: Decoded, zone: ZoneInfo = UTC) -> str:
    return describe(entry(event), zone).plain


def test_model_call_shows_who_what_how_long_tokens_and_model() -> None:
    assert shown(model_call()) == (
        "10:00:00.000  checkout  llm        ChatOpenAI  ok  2.00 s  1,000 → 100 tokens  gpt-4o-mini-2024-07-18"
        "  trace trace-1"
    )
    assert shown(model_call(session_id="s-1")).endswith("trace trace-1  session s-1")
    assert shown(model_call(), ZoneInfo("Asia/Tokyo")).startswith("19:00:00.000")


def test_unknown_tokens_are_not_shown_as_none() -> None:
    assert "tokens" not in shown(model_call(usage=None))


def test_failed_run_is_red_and_says_why() -> None:
    line = describe(entry(chain_end(status="error", error=failure(), duration_ns=250_000_000)), UTC)
    assert line.plain.endswith("RunnableSequence  error  250 ms  ToolException: no such order  trace trace-1")
    assert [str(span.style) for span in line.spans if "red" in str(span.style)] == ["bold red", "red"]


def test_other_events_have_a_line_each() -> None:
    noted = RunNoted(
        **{**run_facts(), "run_type": "tool", "name": "search"}, kind="retry", note="rate limit", attempt=2
    )
    assert shown(noted) == "10:00:00.000  checkout  tool       search  retry  rate limit  attempt 2  trace trace-1"
    assert shown(run_start()).endswith("RunnableSequence  started  trace trace-1")
    assert shown(RunStreamed(**run_facts(), index=0, text="Hello\nworld")).endswith("Hello world  trace trace-1")
    assert shown(session_start()) == "10:00:00.000  checkout  session started  s-1  by u-7"
    assert shown(report(dropped={"ring_full": {"note": 3}}, closing=True)).endswith(
        "emitter emitter-1 on host-1  closing  3 events dropped"
    )
    assert shown(LaneAbandoned(at_ns=START_NS, emitter="e2", first=3, last=1_200, reason="too_old")) == (
        "10:00:00.000  given up  numbers 3 to 1,200 of emitter e2  too_old"
    )
    scored = RunScored(at_ns=START_NS, run_id="r", key="helpful", score=0.5, service="checkout", environment="test")
    assert shown(scored) == "10:00:00.000  checkout  scored  helpful  0.5  by user"
    assert shown(Skipped("run.paused")) == "10:00:00.000  emitter-1  unknown event type run.paused"


def run_facts() -> dict[str, Any]:
    event = run_start()
    return {name: getattr(event, name) for name in ("at_ns", "run_id", "trace_id", "service", "environment")} | {
        "run_type": "llm",
        "name": "ChatOpenAI",
    }


def test_unreadable_record_shows_where_it_lies_and_why() -> None:
    assert shown(Unreadable("not an event: JSON is malformed")) == (
        "10:00:00.000  unreadable  partition 3, offset 17  not an event: JSON is malformed"
    )


def test_control_codes_and_markup_of_a_service_stay_text() -> None:
    line = shown(model_call(name="[red]x[/]\x1b[2J\x07"))
    assert r"[red]x[/]\x1b[2J\x07" in line
    assert line.isprintable()


@pytest.mark.parametrize(
    ("session", "types", "expected"),
    [
        (None, (), ["call", "chain", "session", "unreadable"]),
        ("s-1", (), ["session"]),
        (None, ("llm",), ["call"]),
        (None, ("run.ended",), ["call", "chain"]),
        (None, ("chain", "session.started"), ["chain", "session"]),
        ("s-2", ("session.started",), []),
    ],
)
def test_only_events_of_the_session_and_the_types_are_wanted(
    session: str | None, types: tuple[str, ...], expected: list[str]
) -> None:
    events: dict[str, Decoded] = {
        "call": model_call(),
        "chain": chain_end(),
        "session": session_start(),
        "unreadable": Unreadable("cause"),
    }
    assert [name for name, event in events.items() if is_wanted(event, session, types)] == expected


def test_event_types_are_those_of_the_wire() -> None:
    assert {"run.started", "run.ended", "emitter.reported"} <= {*event_types()}


def test_alert_shows_status_severity_summary_and_trace() -> None:
    line = describe(entry(an_alert()), UTC)
    assert line.plain == (
        "10:00:00.000  firing    critical  service checkout: 20 of 30 root runs failed  trace trace-1"
    )
    assert "bold red" in [str(span.style) for span in line.spans]


def streamed(run_id: str, index: int, text: str) -> RunStreamed:
    return RunStreamed(**{**run_facts(), "run_id": run_id, "trace_id": run_id}, index=index, text=text)


def test_tokens_go_on_in_one_line_and_another_run_gets_a_line_that_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    show = Tokens(UTC)
    events: list[Decoded] = [
        streamed("run-1", 0, "Hel"),
        run_start(),
        streamed("run-1", 1, "lo\nworld\x1b[2J"),
        streamed("run-2", 0, "two"),
        chain_end(run_id="run-2"),
        chain_end(run_id="run-1"),
        streamed("run-1", 2, "!"),
    ]
    for event in events:
        show(entry(event))
    one, two = (f"10:00:00.000  checkout  llm        ChatOpenAI  trace run-{number}" for number in (1, 2))
    assert capsys.readouterr().out == f"{one}\nHello\nworld\\x1b[2J\n{two}\ntwo\n{one}\n!"


def test_json_is_one_line_also_for_what_cannot_be_read_or_is_laid_out() -> None:
    assert json_line(Entry(RECORD, b"\xff\n", Unreadable("not JSON"))) == (
        b'{"type":"unreadable","cause":"not JSON","partition":3,"offset":17}'
    )
    laid_out = b'{\n  "type": "run.paused"\n}'
    assert json_line(Entry(RECORD, laid_out, Skipped("run.paused"))) == b'{"type":"run.paused"}'
    line = encode_event(model_call(name="€"))
    assert json_line(Entry(RECORD, line, model_call())) == line


def test_a_record_is_as_many_entries_as_its_frame_has_events() -> None:
    events = [model_call(), run_start()]
    record = RECORD._replace(value=framed([events[0], b"nonsense", events[1]], "e1", 7))
    entries = list(entries_of(record))
    assert [one.event for one in entries if not isinstance(one.event, Unreadable)] == events
    assert [one.line for one in entries] == [encode_event(events[0]), b"nonsense", encode_event(events[1])]
    assert {one.emitter for one in entries} == {id_of("e1")}
    (foreign,) = entries_of(RECORD)
    assert isinstance(foreign.event, Unreadable)
    assert (foreign.emitter, foreign.line) == (None, b"value")
