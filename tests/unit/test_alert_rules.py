"""The alert rules are functions of figures."""

from __future__ import annotations

import pytest

from runtap_consumers.alerts.rules import (
    WINDOW_NS,
    WINDOWS_A_ROUND,
    AlertState,
    Budget,
    NewGroup,
    RateLimits,
    RootsMinute,
    alert_id,
    choose_new_groups,
    judge_error_rates,
    new_group_alert,
    plan_windows,
    summary_alert,
)
from runtap_consumers.units import HOUR_NS, MINUTE_NS
from runtap_schemas import decode_alert, encode_alert

# A full hour, so that minutes count from it.
START = 490_000 * HOUR_NS
KEY = ("checkout", "prod")
ID = "error_rate/checkout/prod"
LIMITS = RateLimits(0.1, 20)


def minute(number: int, ok: int, errors: int, service: str = "checkout") -> RootsMinute:
    sample = f"run-{number}" if errors else None
    return RootsMinute(service, "prod", START + number * MINUTE_NS, ok, errors, sample)


def ends(first: int, last: int) -> list[int]:
    return [START + number * MINUTE_NS for number in range(first, last + 1)]


def group(number: int, service: str = "checkout", message: str = "boom") -> NewGroup:
    facts = ("ValueError", "other", None, None, None, message)
    return NewGroup(service, f"fingerprint-{number}", "prod", *facts, 3, "run-1")


def test_crossing_fires_once_with_its_figures_and_is_resolved_once() -> None:
    minutes = [
        minute(0, 20, 0),
        minute(1, 10, 10),
        minute(2, 20, 0),
        *(minute(number, 40, 0) for number in range(3, 12)),
    ]
    verdict = judge_error_rates(minutes, ends(1, 12), {}, LIMITS, START + HOUR_NS)
    assert [(alert.state, alert.window_to_ns) for alert in verdict.alerts] == [
        ("firing", START + 2 * MINUTE_NS),
        # 10 of 100 in minutes 0 to 3 still is the rate; 10 of 140 in minutes 0 to 4 is not.
        ("resolved", START + 5 * MINUTE_NS),
    ]
    firing = verdict.alerts[0]
    assert (firing.count, firing.rate, firing.sample_run_id) == (10, 0.25, "run-1")
    assert firing.window_from_ns == START + 2 * MINUTE_NS - WINDOW_NS
    assert [alert.id for alert in verdict.alerts] == ["error_rate/checkout/prod/1", "error_rate/checkout/prod/2"]
    assert verdict.states[KEY].transition == 2


def test_rate_that_equals_the_threshold_fires() -> None:
    verdict = judge_error_rates([minute(0, 18, 2)], ends(1, 1), {}, LIMITS, START + HOUR_NS)
    assert [alert.state for alert in verdict.alerts] == ["firing"]


@pytest.mark.parametrize("minutes", [[minute(0, 0, 19)], [minute(0, 10, 9)], []])
def test_window_with_too_few_roots_is_not_judged(minutes: list[RootsMinute]) -> None:
    assert judge_error_rates(minutes, ends(1, 5), {}, LIMITS, START + HOUR_NS).alerts == []


def test_few_roots_below_the_rate_resolve() -> None:
    firing = {KEY: AlertState("firing", 1, START + MINUTE_NS)}
    minutes = [minute(0, 0, 30), minute(5, 3, 0)]
    verdict = judge_error_rates(minutes, ends(2, 30), firing, LIMITS, START + HOUR_NS)
    assert [(alert.state, alert.window_to_ns, alert.rate) for alert in verdict.alerts] == [
        ("resolved", START + 6 * MINUTE_NS, 0.0)
    ]


def test_service_that_falls_silent_is_resolved_once_by_the_first_window_without_a_root() -> None:
    firing = {KEY: AlertState("firing", 1, START + MINUTE_NS)}
    minutes = [minute(0, 0, 30), minute(8, 0, 2)]
    (alert,) = judge_error_rates(minutes, ends(2, 30), firing, LIMITS, START + HOUR_NS).alerts
    assert (alert.state, alert.id, alert.window_to_ns) == ("resolved", f"{ID}/2", START + 6 * MINUTE_NS)
    assert (alert.count, alert.rate, alert.sample_run_id) == (0, None, None)
    assert decode_alert(encode_alert(alert)) == alert
    # Long silent, and not a root in what was read.
    assert [one.state for one in judge_error_rates([], ends(6, 6), firing, LIMITS, START + HOUR_NS).alerts] == [
        "resolved"
    ]
    quiet = {KEY: AlertState("ok", 2, START + MINUTE_NS)}
    assert judge_error_rates([], ends(2, 30), quiet, LIMITS, START + HOUR_NS).alerts == []


@pytest.mark.parametrize(
    ("now_ns", "is_resolved"),
    [
        # It holds the present: what will end in it is not known.
        (START + 6 * MINUTE_NS - 1, False),
        (START + 6 * MINUTE_NS, True),
        # Its first minute may be deleted, and then it looks like silence.
        (START + MINUTE_NS + 48 * HOUR_NS, True),
        (START + MINUTE_NS + 48 * HOUR_NS + 1, False),
    ],
)
@pytest.mark.parametrize("minutes", [[], [minute(4, 0, 0)]], ids=["nothing", "neither ok nor error"])
def test_only_a_window_that_is_over_and_still_kept_shows_silence(
    minutes: list[RootsMinute], now_ns: int, is_resolved: bool
) -> None:
    firing = {KEY: AlertState("firing", 1, START + MINUTE_NS)}
    verdict = judge_error_rates(minutes, ends(6, 6), firing, LIMITS, now_ns)
    assert [alert.state for alert in verdict.alerts] == ["resolved"] * is_resolved


def test_windows_up_to_the_last_change_are_not_judged_again() -> None:
    resolved = {KEY: AlertState("ok", 2, START + 3 * MINUTE_NS)}
    late = [minute(0, 0, 30)]
    assert judge_error_rates(late, ends(1, 3), resolved, LIMITS, START + HOUR_NS).alerts == []
    again = judge_error_rates(late, ends(1, 5), resolved, LIMITS, START + HOUR_NS)
    assert [(alert.id, alert.window_to_ns) for alert in again.alerts] == [
        ("error_rate/checkout/prod/3", START + 4 * MINUTE_NS)
    ]


def test_services_are_judged_apart() -> None:
    minutes = [minute(0, 100, 0), minute(0, 0, 20, service="search")]
    verdict = judge_error_rates(minutes, ends(1, 1), {}, LIMITS, START + HOUR_NS)
    assert [alert.service for alert in verdict.alerts] == ["search"]


def test_window_that_holds_the_present_ends_with_it() -> None:
    now_ns = START + 30 * 10**9
    verdict = judge_error_rates([minute(0, 0, 20)], ends(1, 1), {}, LIMITS, now_ns)
    assert verdict.alerts[0].window_to_ns == now_ns
    assert verdict.states[KEY].window_to_ns == START + MINUTE_NS


@pytest.mark.parametrize(
    ("done", "touched", "watermark", "now", "expected"),
    [
        # Nothing new.
        (10, None, 10.5, None, []),
        # Time went on.
        (10, None, 12.5, None, [11, 12]),
        # A late commit: all windows that hold the minute, from the one that ends with it.
        (10, 7, 10.5, None, [8, 9, 10]),
        # Everything is applied: the window that holds the present too.
        (10, None, 10.5, 10.5, [11]),
        # One partition lags: nothing is complete beyond it.
        (10, 9, 4.0, None, []),
        (10, 2, 4.0, None, [3, 4]),
    ],
)
def test_windows_to_judge(
    done: int, touched: int | None, watermark: float, now: float | None, expected: list[int]
) -> None:
    def at(number: float) -> int:
        return START + int(number * MINUTE_NS)

    plan = plan_windows(
        at(done),
        None if touched is None else at(touched),
        at(watermark),
        None if now is None else at(now),
    )
    assert plan.windows == [at(number) for number in expected]


@pytest.mark.parametrize(
    ("done", "touched", "watermark", "expected"),
    [(10, None, 12.5, 12), (10, 3, 12.5, 12), (10, None, 4.0, 10), (10, 6, 4.0, 6), (10, 2, 4.0, 4), (10, 20, 4.0, 10)],
)
def test_what_a_lagging_partition_kept_from_being_judged_is_judged_later(
    done: int, touched: int | None, watermark: float, expected: int
) -> None:
    touched_ns = None if touched is None else touched * MINUTE_NS
    plan = plan_windows(done * MINUTE_NS, touched_ns, int(watermark * MINUTE_NS), None)
    assert plan.evaluated_to_ns == expected * MINUTE_NS


def test_windows_reach_back_no_further_than_minutes_are_kept_and_a_backlog_is_judged_in_parts() -> None:
    done, touched = START, 0
    judged: list[int] = []
    for round_number in range(13):
        plan = plan_windows(done, touched if round_number == 0 else None, START, START)
        assert len(plan.windows) <= WINDOWS_A_ROUND + 1
        judged += plan.windows
        done = plan.evaluated_to_ns
    assert judged[:-1] == [START - 48 * HOUR_NS + number * MINUTE_NS for number in range(48 * 60 + 1)]
    # The present's window comes after all others.
    assert judged[-1] == START + MINUTE_NS
    assert plan_windows(done, None, START, None).windows == []


def test_cap_is_a_service_and_hour_and_the_rest_is_counted() -> None:
    groups = [*(group(number) for number in range(5)), group(9, service="search")]
    named, spent = choose_new_groups(groups, {"checkout": 7}, 10)
    assert [one.fingerprint for one in named] == ["fingerprint-0", "fingerprint-1", "fingerprint-2", "fingerprint-9"]
    assert spent == {"checkout": (3, 2), "search": (1, 0)}


def test_ids_are_the_same_whenever_made_and_never_too_long_to_decode() -> None:
    assert alert_id("error_rate", "checkout", "prod", 7) == "error_rate/checkout/prod/7"
    assert alert_id("error_rate", "a/b", "c", 1) != alert_id("error_rate", "a", "b/c", 1)
    long = alert_id("error_rate", "s" * 200, "e" * 200, 12)
    assert long == alert_id("error_rate", "s" * 200, "e" * 200, 12)
    assert long.endswith("/12")
    assert len(long) <= 64
    assert long != alert_id("error_rate", "s" * 199, "e" * 200, 12)
    assert len(alert_id("new_error_group", "s" * 200, "f" * 64)) <= 64


def test_an_error_without_a_message_is_named_by_its_kind_and_where_it_was_raised() -> None:
    told = group(1)._replace(category="rate_limit", status_code=429, code="slow_down", raised_at="shop.ask:7")
    summaries = [new_group_alert(each, START).summary for each in (told, told._replace(message=None))]
    assert summaries == [
        "checkout: new error ValueError (rate_limit, HTTP 429, slow_down) at shop.ask:7: boom",
        "checkout: new error ValueError (rate_limit, HTTP 429, slow_down) at shop.ask:7",
    ]


def test_alerts_decode_with_the_largest_names() -> None:
    facts = ("T" * 200, "c" * 32, 500, "c" * 64, "r" * 200, "m" * 2_000)
    longest = NewGroup("s" * 200, "f" * 64, "e" * 200, *facts, 3, "r" * 64)
    for alert in (
        new_group_alert(longest, START),
        summary_alert(Budget("s" * 200, START, 10, 3), START),
        *judge_error_rates(
            [minute(0, 0, 30)._replace(service="s" * 200, environment="e" * 200)], ends(1, 1), {}, LIMITS, START
        ).alerts,
    ):
        assert decode_alert(encode_alert(alert)) == alert


def test_summary_counts_what_had_no_alert_of_its_own() -> None:
    alert = summary_alert(Budget("checkout", START, 10, 4), START + HOUR_NS)
    assert (alert.state, alert.count, alert.window_from_ns, alert.window_to_ns) == (
        "noticed",
        4,
        START,
        START + HOUR_NS,
    )
