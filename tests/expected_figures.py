"""The report that must come out, worked out without runtap: from what the fake model wrote down, the service's own
books, and prices written by hand.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import pytest

# Dollars a million tokens: input, input from the cache, output.
PRICES = {
    "gpt-4o-mini-2024-07-18": (Decimal("0.15"), Decimal("0.075"), Decimal("0.60")),
    "gpt-4.1-2025-04-14": (Decimal("2"), Decimal("0.5"), Decimal("8")),
    "o4-mini-2025-04-16": (Decimal("1.1"), Decimal("0.275"), Decimal("4.4")),
}
ENVIRONMENT = "acceptance"
# The books' clock is read beside the handler's on a busy machine, and LangChain ends the inner runs of an asynchronous
# stream only some time after it was closed.
_CLOCK_TOLERANCE = timedelta(seconds=3)


@dataclass
class Sums:
    """Calls, tokens and money of one slice."""

    calls: int = 0
    priced_calls: int = 0
    unpriced_calls: int = 0
    unmetered_calls: int = 0
    input_tokens: int = 0
    cache_read_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost: Decimal = field(default_factory=Decimal)

    def add(self, line: dict[str, Any]) -> None:
        """Adds one call as the fake model wrote it down."""
        self.calls += 1
        usage, prices = line["usage"], PRICES.get(line["model"])
        if usage is None:
            self.unmetered_calls += line["error"] is None
            return
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        self.input_tokens += usage["prompt_tokens"]
        self.cache_read_tokens += cached
        self.output_tokens += usage["completion_tokens"]
        self.reasoning_tokens += usage["completion_tokens_details"]["reasoning_tokens"]
        if prices is None:
            self.unpriced_calls += 1
            return
        self.priced_calls += 1
        fresh = usage["prompt_tokens"] - cached
        dollars = fresh * prices[0] + cached * prices[1] + usage["completion_tokens"] * prices[2]
        self.cost += dollars / 1_000_000

    @property
    def cost_usd(self) -> Decimal | None:
        """Unknown, not zero, where no call had a price."""
        return self.cost if self.priced_calls or not self.calls else None


class Expected:
    """Both sides' notes, and the checks of a report against them."""

    def __init__(self, answers: Path, book: Path) -> None:
        self.book = json.loads(book.read_text())
        self.calls = _calls([json.loads(line) for line in answers.read_text().splitlines()])
        self._sessions = {session["session_id"]: session for session in self.book["sessions"]}
        # Where both sides' notes contradict each other nothing can be said about a report.
        runs = Counter(run["status"] for run in self.book["runs"] if run["kind"] == "llm")
        assert Counter(map(_status, self.calls)) == runs, "the fake model and the service saw other calls"
        roots = Counter(run["status"] for run in self.book["runs"] if run["parent"] is None)
        assert Counter(root["status"] for root in self.book["roots"]) == roots, "roots were not as planned"

    def check(self, report: dict[str, Any]) -> None:
        """Compares every figure of the report."""
        self.check_cost(report["cost"])
        self.check_performance(report)
        self.check_errors(report["errors"])
        self.check_sessions(report["sessions"])
        self.check_ledger(report)

    def _service_of(self, line: dict[str, Any]) -> str:
        service: str = self._sessions[line["session"]]["service"]
        return service

    def check_cost(self, cost: dict[str, Any]) -> None:
        total = Sums()
        models: dict[str, Sums] = defaultdict(Sums)
        services: dict[str, Sums] = defaultdict(Sums)
        for line in self.calls:
            for sums in (total, models[line["model"] or line["asked_for"]], services[self._service_of(line)]):
                sums.add(line)
        names = ("calls", "priced_calls", "unpriced_calls", "unmetered_calls", "input_tokens", "output_tokens")
        assert {name: cost[name] for name in names} == {name: getattr(total, name) for name in names}
        assert cost["total_tokens"] == total.input_tokens + total.output_tokens
        assert Decimal(cost["cost_usd"]) == total.cost
        mean = (total.cost / total.priced_calls).quantize(Decimal("1e-12"), ROUND_HALF_EVEN)
        assert Decimal(cost["average_cost_per_call_usd"]) == mean
        assert {row["model"]: _without_model(row) for row in cost["by_model"]} == {
            model: {
                "provider": "openai",
                "calls": sums.calls,
                "unpriced_calls": sums.unpriced_calls,
                "input_tokens": sums.input_tokens,
                "cache_read_tokens": sums.cache_read_tokens,
                "cache_write_tokens": 0,
                "output_tokens": sums.output_tokens,
                "reasoning_tokens": sums.reasoning_tokens,
                "cost_usd": sums.cost_usd,
            }
            for model, sums in models.items()
        }
        assert len(cost["by_model"]) == len(models)
        assert sorted(
            (row["service"], row["environment"], row["calls"], row["unpriced_calls"], Decimal(row["cost_usd"]))
            for row in cost["by_service"]
        ) == sorted(
            (service, ENVIRONMENT, sums.calls, sums.unpriced_calls, sums.cost_usd) for service, sums in services.items()
        )

    def check_performance(self, report: dict[str, Any]) -> None:
        counted: Counter[tuple[str, str, str | None, str]] = Counter()
        answering = {line["asked_for"]: line["model"] for line in self.calls if line["model"]}
        for line in self.calls:
            # What failed counts under the model that others answered as which asked for the same.
            model = line["model"] or answering.get(line["asked_for"], line["asked_for"])
            counted["llm", "ChatOpenAI", model, _status(line)] += 1
        seconds: dict[tuple[str, str, str | None], list[float]] = defaultdict(list)
        for run in self.book["runs"]:
            if run["kind"] != "llm":
                counted[run["kind"], run["name"], None, run["status"]] += 1
                seconds[run["kind"], run["name"], None].append(run["seconds"])
        expected = {
            key[:3]: (
                sum(counted[(*key[:3], status)] for status in ("ok", "error", "interrupted", "cancelled")),
                counted[(*key[:3], "error")],
                _rate(counted[(*key[:3], "ok")], counted[(*key[:3], "error")]),
            )
            for key in counted
        }
        rows = {(row["run_type"], row["name"], row["model"]): row for row in report["performance"]}
        assert len(rows) == len(report["performance"])
        assert {key: (row["count"], row["errors"], row["success_rate"]) for key, row in rows.items()} == expected
        for key, durations in seconds.items():
            _check_durations(rows[key], durations)
        for run_type, figures in report["performance_by_run_type"].items():
            own = [value for key, value in expected.items() if key[0] == run_type]
            assert (figures["count"], figures["errors"]) == (
                sum(value[0] for value in own),
                sum(value[1] for value in own),
            )
        totals = [row["total_seconds"] for row in report["performance"]]
        assert totals == sorted(totals, reverse=True)

    def check_errors(self, errors: dict[str, Any]) -> None:
        planned = self.book["errors"]
        ended_roots = sum(root["status"] in ("ok", "error") for root in self.book["roots"])
        assert errors["total"] == len(planned)
        types = Counter((error["type"], error["category"]) for error in planned)
        assert {(row["type"], row["category"]): (row["count"], row["rate"]) for row in errors["by_type"]} == {
            kind: (count, count / ended_roots) for kind, count in types.items()
        }
        groups = Counter(
            (error["service"], error["type"], error["category"], error["run_type"], error["group"]) for error in planned
        )
        assert sorted(
            (row["service"], row["type"], row["category"], row["run_type"], row["count"]) for row in errors["groups"]
        ) == sorted((*group[:4], count) for group, count in groups.items())
        fingerprints = {(row["service"], row["fingerprint"]) for row in errors["groups"]}
        assert len(fingerprints) == len(groups)
        failed = {run["run_id"]: run for run in self.book["runs"] if run["status"] == "error"}
        for row in errors["groups"]:
            assert failed[row["sample_run_id"]]["kind"] == row["run_type"]
            assert row["first_seen"] <= row["last_seen"]
        # The service's last ten errors came one after the other.
        last = [run for run in self.book["runs"] if run["status"] == "error"][-10:]
        assert [(row["run_id"], row["name"], row["type"]) for row in errors["recent"]] == [
            (run["run_id"], run["name"], run["error"]) for run in reversed(last)
        ]

    def check_sessions(self, sessions: list[dict[str, Any]]) -> None:
        calls: dict[str, Sums] = defaultdict(Sums)
        for line in self.calls:
            calls[line["session"]].add(line)
        counts = {name: Counter(entry["session"] for entry in self.book[name]) for name in ("roots", "tools", "errors")}
        expected = {
            session_id: {
                "user_ids": [session["user_id"]],
                "status": "ended" if session["by_block"] else "open",
                "traces": counts["roots"][session_id],
                "llm_calls": calls[session_id].calls,
                "tool_calls": counts["tools"][session_id],
                "errors": counts["errors"][session_id],
                "input_tokens": calls[session_id].input_tokens,
                "output_tokens": calls[session_id].output_tokens,
                "cost_usd": calls[session_id].cost_usd,
            }
            for session_id, session in self._sessions.items()
        }
        assert {row["session_id"]: _session_facts(row) for row in sessions} == expected
        assert len(sessions) == len(expected)
        for row in sessions:
            session = self._sessions[row["session_id"]]
            begun, over = (datetime.fromtimestamp(session[name] / 1e9).astimezone() for name in ("begun_ns", "over_ns"))
            started_at = datetime.fromisoformat(row["started_at"])
            assert abs(started_at - begun) < _CLOCK_TOLERANCE
            assert abs(started_at + timedelta(seconds=row["duration_seconds"]) - over) < _CLOCK_TOLERANCE
            if session["by_block"]:
                assert abs(datetime.fromisoformat(row["ended_at"]) - over) < _CLOCK_TOLERANCE

    def check_ledger(self, report: dict[str, Any]) -> None:
        stats, ledger = self.book["stats"], report["ledger"]
        captured = stats["captured"] - stats["superseded"]
        assert ledger == {
            "captured": captured,
            "applied": captured,
            "in_flight": 0,
            "dropped": {},
            "lost": 0,
            "quarantined": 0,
            "impossible": 0,
            "foreign": 0,
        }
        last = datetime.fromtimestamp(self.book["last_ns"] / 1e9).astimezone()
        # A partition in which nothing came is known to be read as of ten seconds before a worker looked.
        assert datetime.fromisoformat(report["complete_to"]) >= last - timedelta(seconds=20)

    def check_runs(self, runs: list[dict[str, Any]], report: dict[str, Any]) -> None:
        """Compares the single runs, and the report's durations with theirs."""
        ended = [run for run in runs if run["status"] != "open"]
        assert len(runs) - len(ended) == self.book["open"]
        assert sorted((run["run_id"], run["run_type"], run["name"], run["status"]) for run in ended) == sorted(
            (run["run_id"], run["kind"], run["name"], run["status"]) for run in self.book["runs"]
        )
        components: dict[tuple[str, str, str | None], list[dict[str, Any]]] = defaultdict(list)
        answering = {run["request_model"]: run["model"] for run in ended if run["model_source"] == "answer"}
        for run in ended:
            components[run["run_type"], run["name"], answering.get(run["model"], run["model"])].append(run)
        begin, now = (datetime.fromisoformat(text) for text in (report["range"]["from"], report["generated_at"]))
        minutes = (now - begin).total_seconds() / 60
        for row in report["performance"]:
            own = components[row["run_type"], row["name"], row["model"]]
            durations = sorted(run["duration_seconds"] for run in own)
            assert row["total_seconds"] == pytest.approx(sum(durations))
            assert (row["min_seconds"], row["max_seconds"]) == (durations[0], durations[-1])
            assert row["avg_seconds"] == pytest.approx(sum(durations) / len(durations))
            assert row["calls_per_minute"] == pytest.approx(len(own) / minutes, rel=1e-6)
            _check_quantiles(row, "", durations)
            first_tokens = [run["first_token_seconds"] for run in own if run["first_token_seconds"] is not None]
            _check_quantiles(row, "first_token_", sorted(first_tokens))
            metered = [run for run in own if run["output_tokens"] is not None]
            tokens, busy = (sum(run[name] for run in metered) for name in ("output_tokens", "duration_seconds"))
            assert row["output_tokens_per_second"] == (pytest.approx(tokens / busy) if metered else None)


def _calls(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls as LangChain sees them: an SDK's own retry takes the place of the attempt before it, and of a cancelled
    call LangChain tells no end.
    """
    calls: list[dict[str, Any]] = []
    for line in lines:
        if line["is_retry"]:
            before = next(call for call in reversed(calls) if call["request"] == line["request"])
            calls.remove(before)
        if line["error"] != "unheard":
            calls.append(line)
    return calls


def _status(line: dict[str, Any]) -> str:
    if line["error"] is None:
        return "ok"
    return "cancelled" if line["error"] == "endless" else "error"


def _rate(ok: int, errors: int) -> float | None:
    return ok / (ok + errors) if ok + errors else None


def _without_model(row: dict[str, Any]) -> dict[str, Any]:
    cost = row["cost_usd"]
    kept = {name: value for name, value in row.items() if name != "model"}
    return {**kept, "cost_usd": None if cost is None else Decimal(cost)}


def _session_facts(row: dict[str, Any]) -> dict[str, Any]:
    left_out = ("session_id", "started_at", "ended_at", "duration_seconds")
    facts = {name: value for name, value in row.items() if name not in left_out}
    return {**facts, "cost_usd": None if row["cost_usd"] is None else Decimal(row["cost_usd"])}


def _check_durations(row: dict[str, Any], seconds: list[float]) -> None:
    # Both clocks are read in the same callback, one after the other; other threads may run in between.
    assert abs(row["total_seconds"] - sum(seconds)) < 0.05 * len(seconds) + 0.2
    assert row["min_seconds"] <= row["p50_seconds"] <= row["p95_seconds"] <= row["p99_seconds"] <= row["max_seconds"]


def _check_quantiles(row: dict[str, Any], prefix: str, values: list[float]) -> None:
    for name, fraction in (("p50_seconds", 0.5), ("p95_seconds", 0.95), ("p99_seconds", 0.99)):
        if prefix + name in row:
            exact = values[int(fraction * (len(values) - 1))] if values else None
            # A sketch is off by one per cent at most.
            assert row[prefix + name] == (None if exact is None else pytest.approx(exact, rel=0.0101))
