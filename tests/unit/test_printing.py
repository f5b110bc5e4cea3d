"""The report fits the screen it is printed on."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from runtap_consumers.cli import printing
from runtap_consumers.cli.printing import print_ledger, print_list, print_report, print_table
from runtap_consumers.figures.words import show

AT = "2025-06-20T12:00:00.000000+02:00"
DURATIONS = {
    f"{name}_seconds": 123.4
    for name in ("total", "avg", "min", "max", "p50", "p95", "p99", "first_token_p50", "first_token_p95")
}
SESSION = {
    "session_id": "a-session-of-one-user-with-a-long-name",
    "user_ids": ["u-1", "u-2"],
    "status": "ended",
    "started_at": AT,
    "ended_at": AT,
    "duration_seconds": 7_384.5,
    **dict.fromkeys(("traces", "llm_calls", "tool_calls", "errors", "input_tokens", "output_tokens"), 1_234),
    "cost_usd": None,
}
RUN = {
    "user_id": None,
    "run_id": "01a20c6f-c5b6-70ce-946f-ce1429232e32",
    "run_type": "llm",
    "name": "Chat[red]Open[/]AI",
    "model": None,
    "request_model": "gpt-5-mini-2025-08-07-with-a-long-name",
    "status": "error",
    "error_type": "OpenAIRateLimitError",
    "started_at": AT,
    "duration_seconds": 0.01234,
    "input_tokens": None,
    "output_tokens": 12_345,
    "cost_usd": "1234.5678",
}
COST = {
    "calls": 12_345,
    "unpriced_calls": 3,
    "unmetered_calls": 2,
    "input_tokens": 1_234_567,
    "cache_read_tokens": 123_456,
    "output_tokens": 1_234_567,
    "reasoning_tokens": 12_345,
    "total_tokens": 2_469_134,
    "cost_usd": "0.000000123",
}
GROUP = {
    "type": "OpenAIRateLimitError",
    "category": "rate_limit",
    "status_code": 429,
    "code": "rate_limit_exceeded",
    "raised_at": None,
    "message": "Error code: 429\n - Rate limit reached for requests of this organisation, try again later " * 3,
    "service": "checkout",
    "count": 7,
    "last_seen": AT,
    "sample_run_id": RUN["run_id"],
}


def report(**changes: Any) -> dict[str, Any]:
    component = {"run_type": "llm", "name": RUN["name"], "model": RUN["request_model"], "count": 12_345, "errors": 123}
    error = {**GROUP, "run_id": RUN["run_id"], "name": "weather", "type": "KeyError", "message": "no town", "at": AT}
    return {
        "range": {"from": AT, "to": AT},
        "complete_to": AT,
        "cost": {
            **COST,
            "by_model": [{"provider": "openai", "model": None, **COST}],
            "by_service": [{"service": "checkout", "environment": "prod", **COST}],
        },
        "performance": [{**component, **DURATIONS, "success_rate": 0.5, "output_tokens_per_second": 93.1}] * 20,
        "errors": {"total": 7, "groups": [GROUP], "recent": [error]},
        "session_count": 1,
        "sessions": [SESSION],
        "feedback": {
            "by_key": [
                {"key": "helpful", "value": None, "count": 3, "mean": "0.666667", "service": "s", "environment": None}
            ]
        },
        "alerts": [{"at": AT, "severity": "critical", "status": "firing", "summary": "checkout: 12 of 106 failed"}],
        "ledger": {"captured": 9, "applied": 4, "in_flight": 2, "dropped": {"full": 1}, "lost": 1, "quarantined": 1},
        **changes,
    }


def console(width: int) -> Console:
    return Console(width=width, file=io.StringIO(), color_system=None)


def text_of(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


@pytest.mark.parametrize("width", [80, 120, 150, 200])
def test_every_essential_cell_is_readable_at_any_width(width: int) -> None:
    screen = console(width)
    print_report(report(), screen)
    text = text_of(screen)
    assert max(map(len, text.splitlines())) <= width
    for part in (
        "the first 15 of 20",
        "Chat[red]Open",
        "gpt-5-mini-2025",
        "2 m 03 s",
        "$0.000000",
        "OpenAIRateLimitError",
        "Rate limit",
        "a-session-of-one-user-w",
        "2 h 03 m",
        "06-20 12:00:00",
        "12 of 106 failed",
        "Complete to 2025-06-20 12:00:00+02:00",
        "dropped 1 (full 1)",
    ):
        assert part in text, part
    assert ("01a20c6f-c5b6-70ce-946f-ce1429232e32" in text) == (width >= 150)


def test_a_report_says_how_many_sessions_it_leaves_out() -> None:
    screen = console(120)
    print_report(report(session_count=1_235), screen)
    assert "Sessions, newest first; `runtap sessions` shows 1,234 more" in text_of(screen)
    print_report(report(), screen)
    assert text_of(screen).count("`runtap sessions`") <= 1


def test_errors_without_messages_are_told_by_kind_and_place_and_how_to_have_messages() -> None:
    screen = console(80)
    group = {**GROUP, "message": None, "raised_at": "openai._base_client.SyncAPIClient.request:1047"}
    print_report(report(errors={"total": 7, "groups": [group], "recent": []}), screen)
    text = " ".join(text_of(screen).split())
    for part in ("rate_limit, HTTP 429", "rate_limit_exceeded", "RUNTAP_ERROR_MESSAGES=true"):
        assert part in text, part
    screen = console(80)
    print_report(report(), screen)
    assert "RUNTAP_ERROR_MESSAGES" not in text_of(screen)


def test_runs_and_sessions_are_printed_whole_however_many(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    print_list(map(printing.shorten_run, [RUN] * 1_203), printing.RUNS, printing.NO_RUN)
    text = capsys.readouterr().out
    assert text.count("12.3 ms") == 1_203
    assert "$1,234.57" in text
    monkeypatch.setenv("COLUMNS", "80")
    print_list(iter([SESSION] * 501), printing.SESSIONS, printing.NO_SESSION)
    assert capsys.readouterr().out.count("ended") == 501


def test_what_is_not_known_says_so_and_nothing_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    screen = console(120)
    print_report(report(complete_to=None, performance=[], cost={**COST, "by_model": [], "by_service": []}), screen)
    assert "not known yet" in text_of(screen)
    assert "--since 7d" in text_of(screen)
    screen = console(80)
    print_list(iter([]), printing.RUNS, printing.NO_RUN)
    print_list(iter([]), printing.SESSIONS, printing.NO_SESSION)
    printed = capsys.readouterr().out
    nothing = {"captured": 0, "applied": 0, "in_flight": 0, "dropped": {}, "lost": 0, "quarantined": 0}
    print_report(report(performance=[], sessions=[], ledger=nothing), screen)
    for part in ("No such run", "tap.session", "runtap worker", "runtap demo"):
        assert part in text_of(screen) + printed


def test_columns_of_numbers_are_right_aligned_and_named_as_in_json() -> None:
    screen = console(80)
    rows: list[dict[str, Any]] = [
        {"name": "a", "input_tokens": 1_234_567, "cost_usd": None, "sum": "≥ 5", "what": "7 towns", "more": "x"},
        {"name": "bb", "input_tokens": None, "cost_usd": "12.5", "sum": "12", "what": "8", "more": "x"},
    ]
    print_table(screen, None, "name input_tokens cost_usd sum what* more?", rows)
    assert [line.rstrip() for line in text_of(screen).splitlines()] == [
        "          input",
        "name     tokens        cost  sum  what",
        "a     1,234,567           –  ≥ 5  7 towns",
        "bb            –  $12.500000   12  8",
    ]


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("duration_seconds", 0.01234, "12.3 ms"),
        ("duration_seconds", 59.9999, "60.00 s"),
        ("duration_seconds", 7_384.5, "2 h 03 m"),
        ("success_rate", 0.5, "50.0%"),
        ("output_tokens_per_second", 93.12, "93.1"),
        ("cost_usd", "1234.5678", "$1,234.57"),
        ("last_seen", AT, "06-20 12:00:00"),
        ("user_ids", ["u-1", "u-2"], "u-1, u-2"),
        ("log_time", AT, AT),
        ("cost_usd", None, None),
    ],
)
def test_the_end_of_a_name_says_how_a_figure_is_shown(name: str, value: Any, shown: str | None) -> None:
    assert show(name, value) == shown


def test_a_ledger_has_its_sums_and_reasons_on_a_narrow_screen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    sums = {"captured": 123_456, "applied": 123_450, "in_flight": 2, "lost": 1, "quarantined": 1, "repeats": 9}
    reasons = {"dropped": {"ring_full": 2}, "lost_by_reason": {"too_large": 1}, "captured_is_at_least": True}
    emitter = {**sums, **reasons, "emitter": "e" * 32, "service": "checkout", "state": "silent", "last_heard": AT}
    service = {**sums, **reasons, "service": "checkout", "environment": "prod"}
    incident = {"projection": "performance", "partition": 7, "at": AT, "kind": "retention"}
    print_ledger(
        {
            **sums,
            **reasons,
            "complete_to": AT,
            "projection": "cost",
            "held_by": "e" * 32,
            "foreign": 4,
            "impossible": 0,
            "services": [service],
            "emitters": [emitter],
            "projections": [{**sums, "projection": "performance"}],
            "shared_emitters": [],
            "incidents": [{**incident, "first_offset": 1_000, "last_offset": 1_999}],
            "forgotten": [{"emitter": "f" * 32, "at": AT, "struck_out": True}],
            "skewed_events": {"checkout": 3},
            "unknown_event_types": {},
        }
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for part in (
        "struck out, none of ours",
        "captured at least 123,456 = applied 123,450 + in flight 2 + dropped 2 (ring_full 2) + lost 1 + unreadable 1",
        "checkout ≥ 123,456 123,450 2 2 1 1 dropped:",
        "eeeeeeeeeee… silent ≥ 123,456 123,450 2 2 1 1",
        f"if that process is gone for good, `runtap ledger forget {'e' * 32}`",
        "4 records of no emitter",
        "performance 123,450 2 1 1 9",
        "retention deleted offsets",
    ):
        assert part in text, part
