"""The report fits the screen it is printed on."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from runtap_consumers.cli.printing import print_report, print_runs, print_sessions

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
        "sessions": [SESSION],
        "alerts": [{"at": AT, "rule": "error_rate", "state": "firing", "summary": "checkout: 12 of 106 failed"}],
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
        "1 dropped (full 1)",
    ):
        assert part in text, part
    assert ("01a20c6f-c5b6-70ce-946f-ce1429232e32" in text) == (width >= 150)


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


def test_runs_and_sessions_are_printed_whole_however_many() -> None:
    screen = console(150)
    print_runs(iter([RUN] * 1_203), screen)
    assert text_of(screen).count("12.3 ms") == 1_203
    assert "$1,234.57" in text_of(screen)
    screen = console(80)
    print_sessions(iter([SESSION] * 501), screen)
    assert text_of(screen).count("ended") == 501


def test_what_is_not_known_says_so_and_nothing_says_what_to_do() -> None:
    screen = console(120)
    print_report(report(complete_to=None, performance=[], cost={**COST, "by_model": [], "by_service": []}), screen)
    assert "not known yet" in text_of(screen)
    assert "--since 7d" in text_of(screen)
    screen = console(80)
    print_runs(iter([]), screen)
    print_sessions(iter([]), screen)
    nothing = {"captured": 0, "applied": 0, "in_flight": 0, "dropped": {}, "lost": 0, "quarantined": 0}
    print_report(report(performance=[], sessions=[], ledger=nothing), screen)
    for part in ("No such run", "tap.session", "runtap worker", "runtap demo"):
        assert part in text_of(screen)
