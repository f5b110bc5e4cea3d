"""The alert rules are functions of figures, states and settings; their file is checked whole."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from runtap_consumers.alerts.rule_file import RuleSettings, default_text, find_rules, parse_rules
from runtap_consumers.alerts.rules import make_rule
from runtap_consumers.alerts.state import AnySettings, ErrorFound, State, Verdict
from runtap_consumers.alerts.windows import SETTLE_NS, Mark, RoundPlan, Window, complete_to, ends_to_judge
from runtap_consumers.errors import AlertFileError
from runtap_consumers.figures.quantities import QUANTITIES, PresentQuantity, Quantity
from runtap_consumers.projections.sketch import Sketch, bucket_of
from runtap_consumers.store.read.window_sums import Group, Sums
from runtap_consumers.units import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS

UTC = ZoneInfo("UTC")
# The first of a month, a Thursday.
START = 1_759_276_800 * SECOND_NS + DAY_NS
Minutes = dict[int, dict[Group, Sums]]
WINDOWS = ("1m", "24h", "47h", "48h", "7d", "31d")


class Made:
    """Figures that are made up, by minute and group."""

    def __init__(self, minutes: Minutes | None = None, zone: ZoneInfo = UTC) -> None:
        self.minutes = minutes or {}
        self.zone, self.now_ns, self.learning_until_ns = zone, START, 0
        self.errors: list[ErrorFound] = []
        self.now: dict[Group, Decimal] = {}
        self.lost_events = 0

    def sums(self, rule: AnySettings, quantity: Quantity, from_ns: int, to_ns: int) -> Mapping[Group, Sums]:
        found: dict[Group, Sums] = {}
        for minute_ns, groups in self.minutes.items():
            if from_ns <= minute_ns < to_ns:
                for group, sums in groups.items():
                    into = found.setdefault(group, {})
                    for name, value in sums.items():
                        into[name] = into[name] + value if name in into else value
        return found

    running_sums = sums

    def present(self, rule: AnySettings, quantity: PresentQuantity) -> Mapping[Group, Decimal]:
        return self.now

    def errors_since(self, from_ns: int) -> Sequence[ErrorFound]:
        return self.errors

    def lost(self) -> int:
        return self.lost_events


def rule_of(**settings: Any) -> RuleSettings:
    return RuleSettings.model_validate({"id": "rule", "window": "1m", **settings})


def judged(rule: AnySettings, figures: Made, minutes: int, is_complete: bool = True) -> list[tuple[int, Verdict]]:
    """Findings with a status, window after window, each with the number of the minute in which its window ends."""
    made, states, found = make_rule(rule), dict[Group, State](), []
    span_ns = rule.window if isinstance(rule, RuleSettings) and rule.window else MINUTE_NS
    for number in range(1, minutes + 1):
        end_ns = START + number * MINUTE_NS
        for finding in made.judge(figures, Window(end_ns - span_ns, end_ns, is_complete), states):
            state = finding.state
            states[finding.group] = state._replace(incident="x" if finding.status == "firing" else "")
            if finding.status is not None:
                found.append((number, finding))
    return found


def series(values: Sequence[Sums | None], group: Group = ()) -> Made:
    """One minute after the other; `None`: nothing was counted."""
    return Made({START + n * MINUTE_NS: {group: sums} for n, sums in enumerate(values) if sums is not None})


def told(found: Sequence[tuple[int, Verdict]]) -> list[tuple[int, str | None, str]]:
    return [(number, finding.status, finding.severity) for number, finding in found]


def sketched(*milliseconds: int) -> Sums:
    sketch = Sketch()
    sketch.add([bucket_of(each * 10**6) for each in milliseconds])
    count, total_ns = len(milliseconds), sum(milliseconds) * 10**6
    facts = {"count": count, "total_ns": total_ns, "sketch": sketch.to_bytes()}
    return {**facts, "first_token_count": count, "first_token_sketch": sketch.to_bytes()}


def counts(**measures: int) -> Sums:
    return dict(measures)


# A quantity, sums below the threshold, at it, and the threshold.
SIDES: dict[str, tuple[Sums, Sums, str]] = {
    "cost": (counts(calls=1, cost_picodollars=10**13 - 1), counts(calls=1, cost_picodollars=10**13), "10"),
    "calls": (counts(calls=9), counts(calls=10), "10"),
    "tokens": (
        counts(calls=1, input_tokens=5, output_tokens=4),
        counts(calls=1, input_tokens=5, output_tokens=5),
        "10",
    ),
    "unpriced_share": (counts(calls=100, unpriced_calls=4), counts(calls=100, unpriced_calls=5), "0.05"),
    "unmetered_share": (counts(calls=100, unmetered_calls=4), counts(calls=100, unmetered_calls=5), "0.05"),
    "cached_share": (
        counts(calls=1, input_tokens=100, cache_read_tokens=4),
        counts(calls=1, input_tokens=100, cache_read_tokens=5),
        "0.05",
    ),
    "error_rate": (counts(ok=91, errors=9), counts(ok=90, errors=10), "0.1"),
    "errors": (counts(count=9), counts(count=10), "10"),
    "failure_rate": (counts(ok=91, errors=9), counts(ok=90, errors=10), "0.1"),
    "cut_off_share": (counts(ok=100, cut_off=4), counts(ok=100, cut_off=5), "0.05"),
    "refused_share": (counts(ok=100, refused=4), counts(ok=100, refused=5), "0.05"),
    "score": (counts(count=4, score_billionths=3 * 10**9 - 4), counts(count=4, score_billionths=3 * 10**9), "0.75"),
    "latency_mean": (sketched(1_000, 2_999), sketched(1_000, 3_000), "2"),
    "latency_p50": (sketched(1, 1, 9_000), sketched(1, 9_000, 9_000), "5"),
    "latency_p95": (sketched(*[1] * 99, 9_000), sketched(*[1] * 9, *[9_000] * 2), "5"),
    "latency_p99": (sketched(*[1] * 400, 9_000), sketched(*[1] * 40, *[9_000] * 4), "5"),
    "time_to_first_token_p50": (sketched(1, 1, 9_000), sketched(1, 9_000, 9_000), "5"),
    "time_to_first_token_p95": (sketched(*[1] * 99, 9_000), sketched(*[1] * 9, *[9_000] * 2), "5"),
    "time_to_first_token_p99": (sketched(*[1] * 400, 9_000), sketched(*[1] * 40, *[9_000] * 4), "5"),
}


def test_every_quantity_has_two_sides() -> None:
    assert set(SIDES) == set(QUANTITIES)


@pytest.mark.parametrize("what", SIDES)
def test_each_quantity_fires_at_its_threshold_and_ends_below_it(what: str) -> None:
    below, at, threshold = SIDES[what]
    found = judged(rule_of(what=what, above=threshold), series([below, at, at, below, below]), 5)
    assert told(found) == [(2, "firing", "warning"), (4, "resolved", "warning")]
    assert found[0][1].threshold == Decimal(threshold)


@pytest.mark.parametrize("what", SIDES)
def test_each_quantity_fires_below_its_threshold_and_ends_at_it(what: str) -> None:
    below, at, threshold = SIDES[what]
    assert told(judged(rule_of(what=what, below=threshold), series([at, below, below, at, at]), 5)) == [
        (2, "firing", "warning"),
        (4, "resolved", "warning"),
    ]


@pytest.mark.parametrize("what", SIDES)
def test_what_only_grows_fires_before_its_window_is_over_and_never_ends_before(what: str) -> None:
    below, at, threshold = SIDES[what]
    rule = make_rule(rule_of(what=what, above=threshold))
    plan = RoundPlan(Mark(START, START + MINUTE_NS), START, START + MINUTE_NS + 1)
    windows = list(rule.windows(plan, UTC))
    assert bool(windows) == QUANTITIES[what].only_grows
    assert not any(window.is_complete for window in windows)
    found = judged(rule_of(what=what, above=threshold), series([at, below]), 2, is_complete=False)
    assert told(found) == [(1, "firing", "warning")]


def test_worse_is_said_in_the_same_incident_and_recovery_has_a_threshold_of_its_own() -> None:
    values = (5, 12, 30, 12, 8, 9, 4, 4)
    rule = rule_of(what="calls", above="10", critical="25", recover="5", severity="info")
    assert told(judged(rule, series([counts(calls=value) for value in values]), 8)) == [
        (2, "firing", "info"),
        (3, "firing", "critical"),
        (7, "resolved", "info"),
    ]


def test_for_wants_it_to_last_and_begins_again_after_each_break() -> None:
    values = (12, 12, 3, 12, 12, 12, 12, 3)
    rule = rule_of(what="calls", above="10", **{"for": "2m"})
    assert told(judged(rule, series([counts(calls=value) for value in values]), 8)) == [
        (6, "firing", "warning"),
        (8, "resolved", "warning"),
    ]


def test_too_few_calls_are_not_judged_but_end_what_fires() -> None:
    values = [counts(ok=1, errors=9), counts(ok=0, errors=20), counts(ok=5, errors=0)]
    rule = rule_of(what="error_rate", above="0.1", least_calls=20)
    assert told(judged(rule, series(values), 3)) == [(2, "firing", "warning"), (3, "resolved", "warning")]


@pytest.mark.parametrize(
    ("no_data", "expected"),
    [
        ("resolve", [(1, "firing"), (2, "resolved")]),
        ("keep", [(1, "firing"), (4, "resolved")]),
        ("alert", [(1, "firing"), (4, "resolved")]),
    ],
)
def test_no_data_means_what_the_rule_says(no_data: str, expected: list[tuple[int, str]]) -> None:
    rule = rule_of(what="error_rate", above="0.1", no_data=no_data)
    found = judged(rule, series([counts(ok=0, errors=9), None, None, counts(ok=9, errors=0)]), 4)
    assert [(number, finding.status) for number, finding in found] == expected


def test_silence_is_data_of_a_count_and_an_alert_of_a_rate_that_asks_for_it() -> None:
    group = ("checkout",)
    silent = rule_of(what="calls", below="1", group_by=["service"])
    assert told(judged(silent, series([counts(calls=3), None, None, counts(calls=1)], group), 4)) == [
        (2, "firing", "warning"),
        (4, "resolved", "warning"),
    ]
    rate = rule_of(what="error_rate", above="0.5", no_data="alert", group_by=["service"])
    found = judged(rate, series([counts(ok=3, errors=0), None, None, counts(ok=1, errors=0)], group), 4)
    assert [(number, finding.status, finding.value) for number, finding in found] == [
        (2, "firing", None),
        (4, "resolved", Decimal(0)),
    ]
    # Of everything together there is always a group.
    assert told(judged(rule_of(what="calls", below="1"), Made(), 2)) == [(1, "firing", "warning")]


def test_repeat_says_again_what_goes_on() -> None:
    rule = rule_of(what="calls", above="10", repeat="3m")
    found = judged(rule, series([counts(calls=12)] * 8), 9)
    assert [(number, finding.status) for number, finding in found] == [
        *((1, "firing"), (4, "firing"), (7, "firing")),
        (9, "resolved"),
    ]
    assert len({finding.state.transition for _, finding in found}) == 4


def test_usual_is_the_median_of_the_same_hour_of_three_days_or_more() -> None:
    rule = rule_of(what="latency_p50", times_usual="2", window="5m")

    def with_days(days: int, now_ms: int) -> Made:
        past: Minutes = {
            START - day * DAY_NS + MINUTE_NS: {(): sketched(*[100 + 10 * day] * 9)} for day in range(1, days + 1)
        }
        return Made({**past, START: {(): sketched(*[now_ms] * 9)}})

    assert judged(rule, with_days(2, 9_000), 1) == []
    assert told(judged(rule, with_days(3, 9_000), 1)) == [(1, "firing", "warning")]
    # Three days of 110, 120 and 130 ms: twice the median.
    assert judged(rule, with_days(3, 230), 1) == []
    ((_, finding),) = judged(rule, with_days(3, 245), 1)
    assert finding.threshold is not None
    assert float(finding.threshold) == pytest.approx(0.24, rel=0.02)


@pytest.mark.parametrize(
    ("window", "group_by"), [*((each, []) for each in WINDOWS), *((each, ["user"]) for each in WINDOWS[1:])]
)
def test_windows_of_every_length_are_judged_once_they_are_complete(window: str, group_by: list[str]) -> None:
    text = f"[[rule]]\nid = 'r'\nwhat = 'cost'\nwindow = '{window}'\nabove = '1'\ngroup_by = {group_by}\n"
    (settings,) = parse_rules(text, "t", ()).rules
    now = START + 13 * HOUR_NS + SETTLE_NS
    windows = list(make_rule(settings).windows(RoundPlan(Mark(now - 30 * MINUTE_NS), complete_to(now), now), UTC))
    assert windows[-1].to_ns == START + 13 * HOUR_NS
    assert all(each.is_complete for each in windows)


def test_factors_of_what_is_usual_are_so_for_critical_and_recovery_too() -> None:
    rule = rule_of(what="latency_p50", times_usual="2", critical="4", recover="1.5")
    past: Minutes = {START - day * DAY_NS + MINUTE_NS: {(): sketched(*[100] * 9)} for day in (1, 2, 3)}
    values = (150, 210, 450, 190, 160, 140)
    now: Minutes = {START + number * MINUTE_NS: {(): sketched(*[value] * 9)} for number, value in enumerate(values)}
    assert told(judged(rule, Made({**past, **now}), 6)) == [
        (2, "firing", "warning"),
        (3, "firing", "critical"),
        (6, "resolved", "warning"),
    ]


def budget(**settings: Any) -> AnySettings:
    text = "[[budget]]\nid = 'spend'\n" + "".join(
        f"{name} = {str(value).lower() if value is False else repr(value)}\n" for name, value in settings.items()
    )
    return parse_rules(text, "test", ()).rules[0]


def spent(dollars: float) -> dict[Group, Sums]:
    return {(): counts(calls=1, cost_picodollars=round(dollars * 10**12))}


def judged_at(rule: AnySettings, figures: Made, ends: Sequence[int]) -> list[Verdict]:
    made, states, found = make_rule(rule), dict[Group, State](), []
    for end_ns in ends:
        for window in made.windows(RoundPlan(Mark(end_ns - MINUTE_NS), end_ns, end_ns), figures.zone):
            for finding in made.judge(figures, window, states):
                incident = "x" if finding.status == "firing" else ""
                states[finding.group] = finding.state._replace(incident=incident)
                found.append(finding)
    return found


def test_budget_says_each_percentage_once_the_highest_alone_and_ends_with_its_period() -> None:
    day = {START + hour * HOUR_NS: spent(dollars) for hour, dollars in ((1, 4.99), (2, 0.01), (3, 3), (4, 3), (30, 1))}
    rule = budget(period="day", limit="10", forecast=False)
    found = judged_at(rule, Made(day), [START + hour * HOUR_NS + MINUTE_NS for hour in (1, 2, 3, 4, 5, 30)])
    assert [(each.status, each.severity, each.threshold) for each in found] == [
        ("firing", "warning", Decimal(5)),
        ("firing", "warning", Decimal(8)),
        ("firing", "critical", Decimal(10)),
        ("resolved", "warning", None),
    ]
    jump = judged_at(rule, Made({START: spent(50)}), [START + MINUTE_NS])
    assert [each.threshold for each in jump] == [Decimal(10)]


def test_budget_forecast_waits_for_a_tenth_of_the_period_and_is_said_once() -> None:
    figures = Made({START + hour * HOUR_NS: spent(1) for hour in range(24)})
    rule = budget(period="day", limit="20", at=[100])
    found = judged_at(rule, figures, [START + hour * HOUR_NS + MINUTE_NS for hour in range(24)])
    assert [(each.status, each.threshold) for each in found] == [("firing", Decimal(20)), ("firing", Decimal(20))]
    first, second = (each.window for each in found)
    assert first is not None
    assert second is not None
    assert (first.to_ns, second.to_ns) == (START + 3 * HOUR_NS + MINUTE_NS, START + 19 * HOUR_NS + MINUTE_NS)
    assert "on its way to" in found[0].says


@pytest.mark.parametrize(
    ("period", "zone", "days_before"),
    [("day", "UTC", 0), ("week", "UTC", 3), ("month", "UTC", 1), ("month", "Asia/Kolkata", 1)],
)
def test_budget_periods_are_those_of_the_stores_zone(period: str, zone: str, days_before: int) -> None:
    # 2 October 2025, a Thursday.
    figures, made = Made(zone=ZoneInfo(zone)), make_rule(budget(period=period, limit="1"))
    offset = 0 if zone == "UTC" else 5 * HOUR_NS + 30 * MINUTE_NS
    end = START + 12 * HOUR_NS
    (window,) = made.windows(RoundPlan(Mark(end - MINUTE_NS), end, end), figures.zone)
    assert window.from_ns == START - days_before * DAY_NS - offset


def found_error(fingerprint: str, service: str = "checkout", environment: str = "prod") -> ErrorFound:
    return ErrorFound(service, environment, fingerprint, 3, "run-1", "ValueError: boom", "ValueError", "app:12")


def test_new_errors_are_named_once_by_service_and_where_they_are_wanted() -> None:
    figures = Made()
    figures.errors = [found_error("a"), found_error("a", "search"), found_error("b", environment="staging")]
    rule = RuleSettings.model_validate({"id": "new", "what": "new_error_group", "where": {"environment": "prod"}})
    found = judged(rule, figures, 3)
    assert [(finding.group, finding.status) for _, finding in found] == [
        (("checkout", "a"), "noticed"),
        (("search", "a"), "noticed"),
    ]
    assert found[0][1].facts["error_place"] == "app:12"
    figures.learning_until_ns = START + 1
    assert judged(rule, figures, 3) == []


def test_losses_are_said_each_time_that_there_are_more() -> None:
    rule, figures = RuleSettings.model_validate({"id": "lost", "what": "events_lost"}), Made()
    made, states, values = make_rule(rule), dict[Group, State](), []
    for figures.lost_events in (0, 5, 5, 3, 9):
        for finding in made.judge(figures, Window(START, START + MINUTE_NS, True), states):
            states[finding.group] = finding.state
            values.append((finding.status, finding.value))
    assert values == [("noticed", Decimal(5)), (None, None), ("noticed", Decimal(6))]


def test_lag_is_of_the_present_and_judged_once_a_minute() -> None:
    rule = RuleSettings.model_validate({"id": "lag", "what": "worker_lag", "above": "60"})
    made, figures = make_rule(rule), Made()
    now = START + 5 * MINUTE_NS + 7
    assert [window.to_ns for window in made.windows(RoundPlan(Mark(START), 0, now), UTC)] == [START + 5 * MINUTE_NS]
    assert list(made.windows(RoundPlan(Mark(START + 5 * MINUTE_NS), 0, now), UTC)) == []
    figures.now = {(): Decimal(61)}
    assert told(judged(rule, figures, 1)) == [(1, "firing", "warning")]


def test_windows_are_those_that_ended_and_those_that_a_commit_touched() -> None:
    def ends(mark: Mark, complete_to_ns: int, now_ns: int, is_early: bool = False) -> list[tuple[int, bool]]:
        found = ends_to_judge(RoundPlan(mark, complete_to_ns, now_ns), "minute", 5 * MINUTE_NS, UTC, is_early)
        return [((end - START) // MINUTE_NS, is_complete) for end, is_complete in found]

    def at(number: int) -> int:
        return START + number * MINUTE_NS

    assert ends(Mark(at(3)), at(3), at(3) + 9) == []
    assert ends(Mark(at(3)), at(5), at(5) + 9) == [(4, True), (5, True)]
    # Minute 1 was touched: all windows that hold it end after its begin.
    assert ends(Mark(at(3), at(1)), at(3), at(3) + 9) == [(2, True), (3, True)]
    assert ends(Mark(at(3), at(3)), at(3), at(3) + 9) == []
    assert ends(Mark(at(3), at(3)), at(3), at(3) + 9, is_early=True) == [(4, False)]
    # The pipeline is behind by two minutes: what only grows is judged up to now.
    assert ends(Mark(at(3), at(2)), at(3), at(5) + 9, is_early=True) == [(3, True), (4, False), (5, False), (6, False)]
    assert ends(Mark(at(3)), at(3), at(5) + 9, is_early=True) == []
    # All of them, whichever was touched, but for those that a round without time to finish has judged.
    assert ends(Mark(at(3), at(5)), at(3), at(5) + 9, is_early=True) == [(4, False), (5, False), (6, False)]
    assert ends(Mark(at(3), at(4), at(4)), at(3), at(5) + 9, is_early=True) == [(5, False), (6, False)]
    # An outage delays, and nothing is judged of which the minutes are gone.
    days = ends(Mark(at(3)), at(5 * 1_440), at(5 * 1_440))
    assert days[0] == (5 * 1_440 - 48 * 60 + 6, True)
    assert days[-1] == (5 * 1_440, True)


def test_hours_of_a_zone_at_half_past_end_at_half_past() -> None:
    plan = RoundPlan(Mark(START), START + 3 * HOUR_NS, START + 3 * HOUR_NS)
    ends = [end - START for end, _ in ends_to_judge(plan, "hour", DAY_NS, ZoneInfo("Asia/Kolkata"), False)]
    assert ends == [HOUR_NS // 2, HOUR_NS * 3 // 2, HOUR_NS * 5 // 2]


def test_a_minute_is_complete_two_seconds_after_its_end() -> None:
    assert complete_to(START + SETTLE_NS - 1) == START - MINUTE_NS
    assert complete_to(START + SETTLE_NS) == START
    assert complete_to(0) == 0


def test_any_order_of_the_same_windows_in_pieces_says_the_same() -> None:
    numbers = random.Random(17)
    values = [counts(calls=numbers.choice((0, 5, 12, 30))) if numbers.random() < 0.8 else None for _ in range(300)]
    rule = rule_of(what="calls", above="10", critical="25", recover="6", window="3m", **{"for": "1m"})
    whole = judged(rule, series(values), 300)
    assert {finding.status for _, finding in whole} == {"firing", "resolved"}
    transitions = [finding.state.transition for _, finding in whole]
    assert transitions == list(range(1, len(whole) + 1))
    levels = [(finding.status, finding.severity) for _, finding in whole]
    assert all(levels.count(each) > 3 for each in (("firing", "warning"), ("firing", "critical")))
    for (_, one), (_, other) in itertools.pairwise(whole):
        assert not (one.status == other.status == "resolved")


def mistakes(text: str, attributes: Sequence[str] = ("team",)) -> list[str]:
    with pytest.raises(AlertFileError) as caught:
        parse_rules(text, "rules.toml", attributes)
    return [line.removeprefix("rules.toml: ") for line in str(caught.value).splitlines()]


RULE = "[[rule]]\nid = 'r'\nwhat = 'cost'\nwindow = '5m'\nabove = '1'\n"


def test_built_in_rules_are_right_and_can_all_be_made() -> None:
    found = parse_rules(default_text(), "default", ())
    assert [rule.id for rule in found.rules] == [
        *("error_rate", "new_error_group", "unpriced", "events_lost", "worker_lag")
    ]
    assert all(make_rule(rule).projection in ("errors", "cost", "") for rule in found.rules)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RULE + "windo = '1m'\n", "rule 'r': windo: there is no such key"),
        ("[[rules]]\nid = 'r'\n", "rules: there is no such key"),
        (RULE.replace("'1'", "1.5"), "rule 'r': above: 1.5: write the amount as text, as in \"1.5\""),
        (RULE.replace("'5m'", "'5 min'"), "rule 'r': window: '5 min' is no duration: expected a text such as 30s"),
        (RULE.replace("'5m'", "'90s'"), "rule 'r': window: expected whole minutes"),
        (RULE.replace("'5m'", "'32d'"), 'rule \'r\': expected window = "1m" to "31d"'),
        (RULE.replace("'cost'", "'costs'"), "rule 'r': what = 'costs': expected one of cost, calls"),
        (RULE + "below = '1'\n", "rule 'r': expected exactly one of above, below and times_usual"),
        (RULE + "recover = '2'\n", "rule 'r': recover = 2: expected at most above = 1"),
        (RULE + "critical = '0.5'\n", "rule 'r': critical = 0.5: expected at least above = 1"),
        (RULE + "group_by = ['name']\n", "rule 'r': 'name': figures of this kind are kept by provider, model"),
        (RULE + "group_by = ['user', 'team']\n", "rule 'r': user and team: costs are kept by one attribute at a time"),
        (RULE + "group_by = ['user']\n", "rule 'r': window: by user there are whole hours only"),
        (RULE + RULE, "'r' is the id of more than one rule: each needs one of its own"),
        (RULE.replace("'r'", "'a b'"), "rule 'a b': id: 'a b': "),
        (
            "[[rule]]\nid = 'x'\nwhat = 'worker_lag'\nabove = '1'\nwindow = '5m'\n",
            "rule 'x': window: 'worker_lag' is what it is now",
        ),
        (
            "[[rule]]\nid = 'x'\nwhat = 'worker_lag'\nabove = '1'\nleast_calls = 2\n",
            "rule 'x': least_calls: 'worker_lag'",
        ),
        (
            "[[rule]]\nid = 'x'\nwhat = 'new_error_group'\ngroup_by = ['service']\n",
            "rule 'x': group_by: 'new_error_group'",
        ),
        (RULE + "".join(f"labels.l{number} = 'x'\n" for number in range(33)), "rule 'r': labels: "),
        (
            "[[rule]]\nid = 'x'\nwhat = 'events_lost'\nabove = '1'\n",
            "rule 'x': above: 'events_lost' happens or does not",
        ),
        ("[[budget]]\nid = 'b'\nperiod = 'year'\nlimit = '1'\n", "budget 'b': period: 'year': "),
        (
            "[[budget]]\nid = 'b'\nperiod = 'day'\nlimit = '1'\nat = [80, 50]\n",
            "budget 'b': at = [80, 50]: expected rising",
        ),
        ("[[rule]]\nwhat = 'cost'\n", "rule number 1: id: Field required"),
        ("[[rule]\n", "Expected ']]'"),
    ],
)
def test_each_mistake_names_rule_key_and_remedy(text: str, expected: str) -> None:
    assert any(line.startswith(expected) for line in mistakes(text)), mistakes(text)


def test_all_mistakes_are_told_at_once() -> None:
    assert len(mistakes(RULE + "a = 1\n" + RULE.replace("'r'", "'s'") + "b = 1\n")) == 2


def test_rules_are_those_of_the_setting_else_of_the_folder_else_built_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_rules(None, ()).name == "the built-in rules"
    (tmp_path / "alerts.toml").write_text(RULE)
    assert [rule.id for rule in find_rules(None, ()).rules] == ["r"]
    (tmp_path / "mine.toml").write_text(RULE.replace("'r'", "'mine'"))
    assert [rule.id for rule in find_rules("mine.toml", ()).rules] == ["mine"]
    with pytest.raises(AlertFileError, match=r"cannot read the alert rules none\.toml"):
        find_rules("none.toml", ())


def test_revision_is_of_what_a_rule_says() -> None:
    one, same, other = (parse_rules(text, "t", ()).rules[0] for text in (RULE, RULE + "\n", RULE + "for = '1m'\n"))
    assert one.revision == same.revision != other.revision
