"""The same figures asked through every face: commands, API and `/metrics`, of a store whose events are all in range."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from subprocess import CompletedProcess
from typing import Any
from urllib.parse import urlencode

import jsonschema
from prometheus_client.parser import text_string_to_metric_families

from runtap_consumers.serve.openapi import make_document

CUTS = (
    ("model",),
    ("user", "model"),
    ("hour",),
    ("day", "provider"),
    ("service",),
    ("environment",),
    ("root",),
    ("tag",),
)
Labels = dict[str, str]


def _is_instant(text: object) -> bool:
    return not isinstance(text, str) or datetime.fromisoformat(text).tzinfo is not None


_formats = jsonschema.FormatChecker(())
_formats.checks("date-time", ValueError)(_is_instant)


def _strict_document() -> dict[str, Any]:
    """The API's document; what it does not name is wrong here, but for the names that costs are cut by."""
    document = make_document()
    for name, schema in document["components"]["schemas"].items():
        if name != "CostFigures":
            schema["additionalProperties"] = False
    return document


_DOCUMENT = _strict_document()


def check_answer(path: str, status: int, body: bytes) -> str:
    """Fails where an answer is not what the document says of its route; returns the route."""
    asked = path.partition("?")[0]
    routes = [route for route in _DOCUMENT["paths"] if re.fullmatch(route.replace("{id}", "[^/]+"), asked)]
    (route,) = routes
    responses = _DOCUMENT["paths"][route]["get"]["responses"]
    said = responses.get(str(status)) or responses[f"{status // 100}XX"]
    schema = {**_DOCUMENT, **said["content"]["application/json"]["schema"]}
    jsonschema.Draft202012Validator(schema, format_checker=_formats).validate(json.loads(body))
    return str(route)


class Faces:
    """A server and the commands of one store."""

    def __init__(
        self, ask: Callable[[str], tuple[int, Any, bytes]], run: Callable[..., CompletedProcess[str]], **span: str
    ) -> None:
        """`ask` takes a path; `run` the words of a command. `span`: since and until of all events."""
        self._ask, self._run, self._span = ask, run, span
        self.routes: set[str] = set()

    def get(self, path: str, **parameters: Any) -> Any:
        """What the API answers."""
        asked = f"/api/v1/{path}?{urlencode(parameters, doseq=True)}"
        status, _, body = self._ask(asked)
        assert status == 200, body
        self.routes.add(check_answer(asked, status, body))
        return json.loads(body)

    def get_all(self, path: str, limit: int) -> list[Any]:
        """All rows of a route that answers in pages."""
        rows: list[Any] = []
        cursor: dict[str, str] = {}
        while True:
            page = self.get(path, limit=limit, **cursor)
            rows += page[path]
            if page["cursor"] is None:
                return rows
            cursor = {"cursor": page["cursor"]}

    def printed(self, *arguments: str) -> list[Any]:
        """The lines, or the one object, of a command."""
        done = self._run(*arguments, "--json", *(["-"] if arguments[0] == "report" else []))
        assert done.returncode == 0, done.stderr
        texts = (
            [done.stdout]
            if arguments[0] in ("report", "costs", "trace", "session", "ledger")
            else done.stdout.splitlines()
        )
        return [json.loads(text) for text in texts]

    def scrape(self) -> Iterator[tuple[str, Labels, float]]:
        """Every sample of `/metrics`."""
        status, headers, body = self._ask("/metrics")
        assert (status, headers["content-type"].startswith("text/plain; version=0.0.4")) == (200, True)
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                yield sample.name, sample.labels, sample.value

    def compare(self) -> dict[str, Any]:
        """Asks everything everywhere, and fails where two differ; returns the report."""
        while True:
            alerts = self.get("alerts", **self._span)
            try:
                return self._compare()
            except AssertionError:
                # Rules about whole minutes may have raised one in between.
                if self.get("alerts", **self._span) == alerts:
                    raise

    def _compare(self) -> dict[str, Any]:
        options = [word for name, value in self._span.items() for word in (f"--{name}", value)]
        report: dict[str, Any] = _still(self.printed("report", *options)[0])
        assert _still(self.get("report", **self._span)) == report
        for service in {row["service"] for row in report["cost"]["by_service"]}:
            of_service = self.printed("report", "--service", service, *options)[0]
            assert _still(self.get("report", service=service, **self._span)) == _still(of_service)
        for route in ("components", "errors", "feedback", "alerts"):
            found = _still(self.get(route, **self._span))
            for more in ("self_times", "trend"):
                found.pop(more, None)
            assert found == {name: report[name] for name in found}
        for by in CUTS:
            words = [word for name in by for word in ("--by", name)]
            assert _still(self.get("costs", by=by, **self._span)) == _still(self.printed("costs", *words, *options)[0])
        changes = _still(self.get("changes", **self._span))
        assert changes == _still(self.printed("costs", "--why", *options)[0])
        assert changes["cost_usd"] == report["cost"]["cost_usd"]
        parts = sum(map(Decimal, changes["parts_usd"].values()))
        assert (
            parts
            == Decimal(changes["difference_usd"])
            == sum(Decimal(row["difference_usd"]) for row in changes["models"])
        )
        self._compare_series()
        self._compare_overview(report)
        assert self.get("unpriced")["models"] == self.printed("prices", "unmatched")
        letters = [{**row, "value_bytes": None} for row in self.printed("dead-letters", "list")]
        assert [{**row, "value_bytes": None} for row in self.get("dead-letters")["dead_letters"]] == letters
        runs, sessions = self.printed("runs", "--limit", "0"), self.printed("sessions", "--limit", "0")
        assert self.get_all("runs", 100) == runs
        assert self.get("runs", roots="true", limit=1_000)["runs"] == [
            run for run in runs if run["parent_run_id"] is None
        ]
        assert self.get_all("sessions", 7) == sessions
        assert len(sessions) == report["session_count"]
        assert report["sessions"] == sessions[: len(report["sessions"])]
        assert self.get(f"traces/{runs[0]['run_id']}") == self.printed("trace", runs[0]["run_id"])[0]
        session_id = sessions[0]["session_id"]
        assert self.get(f"sessions/{session_id}") == self.printed("session", session_id, "--limit", "50")[0]
        ledger = _still(self.printed("ledger")[0])
        assert _still(self.get("ledger")) == ledger
        assert report["ledger"] == {name: ledger[name] for name in report["ledger"]}
        assert {row["projection"] for row in self.get("workers")["positions"]} >= {"cost", "runs"}
        self._compare_metrics(report)
        return report

    def _compare_series(self) -> None:
        for metric in ("cost_usd", "calls", "unpriced_calls", "input_tokens", "output_tokens"):
            series = self.get("series", metric=metric, by="model", grain="day", **self._span)["series"]
            points = {(one["value"], at): figure for one in series for at, figure in one["points"]}
            rows = self.get("costs", by=("day", "model"), **self._span)["rows"]
            assert points == {(row["model"], row["day"]): row[metric] for row in rows}

    def _compare_overview(self, report: dict[str, Any]) -> None:
        found = self.get("overview", **self._span)
        figures, calls = found["figures"], report["performance_by_run_type"]["llm"]
        for name in ("cost_usd", "calls", "unpriced_calls", "unmetered_calls", "total_tokens"):
            assert figures[name] == report["cost"][name], name
        for name in ("p50_seconds", "p95_seconds", "first_token_p95_seconds"):
            assert figures[name] == calls[name], name
        assert (figures["sessions"], found["ledger"]) == (report["session_count"], report["ledger"])
        assert found["before_range"]["to"] == found["range"]["from"] == report["range"]["from"]
        # The points over time are the whole, in parts.
        assert sum(filter(None, found["series"]["calls"])) == figures["calls"]
        assert sum(map(Decimal, filter(None, found["series"]["cost_usd"]))) == Decimal(figures["cost_usd"] or 0)

    def _compare_metrics(self, report: dict[str, Any]) -> None:
        """Sums of whole numbers are equal, durations to the nanosecond; of money the float is the one nearest to it."""
        counts, costs = Counter[tuple[str, ...]](), dict[tuple[str, ...], float]()
        for name, labels, value in self.scrape():
            place = tuple(labels.get(label, "") for label in ("service", "environment", "provider", "model"))
            if name == "runtap_cost_dollars_total":
                costs[place] = value
            elif name.endswith("_seconds_sum"):
                counts[name,] += round(value * 1e9)
            elif not name.endswith("_bucket"):
                kind = [labels[label] for label in ("status", "type", "state", "reason") if label in labels]
                counts[name, *kind] += int(value)
        for run_type in ("llm", "chain", "tool"):
            of_type = report["performance_by_run_type"][run_type]
            statuses = {key[1]: count for key, count in counts.items() if key[0] == f"langchain_{run_type}_calls_total"}
            assert sum(statuses.values()) == of_type["count"]
            assert statuses.get("error", 0) == of_type["errors"]
            judged = statuses.get("success", 0) + statuses.get("error", 0)
            assert of_type["success_rate"] == (statuses["success"] / judged if judged else None)
            if run_type != "tool":
                duration = f"langchain_{run_type}_duration_seconds"
                assert counts[f"{duration}_count",] == of_type["count"]
                assert counts[f"{duration}_sum",] == round(of_type["total_seconds"] * 1e9)
        cost, errors = report["cost"], report["errors"]
        assert cost["calls"] == report["performance_by_run_type"]["llm"]["count"]
        for which, tokens in (("prompt", "input_tokens"), ("completion", "output_tokens")):
            assert counts["langchain_token_usage_sum", which] == cost[tokens]
        for which in ("unpriced", "unmetered"):
            assert counts[f"runtap_{which}_calls_total",] == cost[f"{which}_calls"]
        by_type = Counter[str]()
        for row in errors["by_type"]:
            by_type[row["type"]] += row["count"]
        assert {key[1]: count for key, count in counts.items() if key[0] == "runtap_errors_total"} == by_type
        assert counts["runtap_sessions",] == report["session_count"]
        for state in ("captured", "applied", "in_flight", "lost", "quarantined"):
            assert counts["runtap_ledger_events", state] == report["ledger"][state]
        dropped = {key[1]: count for key, count in counts.items() if key[0] == "runtap_ledger_dropped_events"}
        assert dropped == report["ledger"]["dropped"]
        opened = self.get("runs", type="llm", status="open", limit=1_000)["runs"]
        assert counts["langchain_llm_active_calls",] == len(opened)
        priced = {}
        for service, environment in {key[:2] for key in costs}:
            of = {"service": service, "environment": environment}
            for row in self.get("costs", by=("provider", "model"), **of, **self._span)["rows"]:
                if row["priced_calls"]:
                    priced[service, environment, row["provider"], row["model"]] = float(Decimal(row["cost_usd"]))
        assert costs == priced
        assert sum(map(Decimal, (row["cost_usd"] or "0" for row in cost["by_model"]))) == Decimal(cost["cost_usd"])


def _still(answer: dict[str, Any]) -> dict[str, Any]:
    """Without what moves on by itself where workers run."""
    still = {name: value for name, value in answer.items() if name not in ("generated_at", "complete_to")}
    if "performance" in answer and answer["generated_at"] < answer["range"]["to"]:
        for row in (*still["performance"], *still["performance_by_run_type"].values()):
            del row["calls_per_minute"]
    return still
