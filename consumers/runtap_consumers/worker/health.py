"""Health of a worker, for compose and Kubernetes: alive while its loop goes round, ready while it does its work.

It is served from a thread of its own, so that a worker whose loop hangs still answers, with what is wrong.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtap_consumers.errors import HealthPortError
from runtap_consumers.worker.metrics import answer_metrics

# A fence or a failed attempt heals within this time.
_STANDS_AFTER_SECONDS = 5.0
# The alert evaluator goes round every second, and its lease lasts for half a minute.
_EVALUATED_WITHIN_SECONDS = 30.0

_logger = structlog.get_logger(__name__)


@dataclass
class Health:
    """What a worker knows of itself. Written by the worker, read by the health server.

    `stalled_after_seconds`: how long there may be lag without progress. `waiting_for`: what it cannot begin without;
    `lag`: `None` while that of some partition is not known; `lags`: by partition and projection, empty where it is not
    known; `standing`: partitions that fail, since when and why;
    `unanswered`: since when Kafka or the store does not answer, and how; `evaluated`: when the alert evaluator last
    went round, `None` without one; `channels`: what channels of alerts, or a forwarder, wait for, since when and why;
    `notifications`: how many alerts by channel and outcome; `forwarded`: how many events by outcome. Times are
    `time.monotonic()`.
    """

    projections: tuple[str, ...]
    stalled_after_seconds: float = 60.0
    waiting_for: str | None = "it is starting"
    partitions: list[int] = field(default_factory=list)
    lag: int | None = None
    lags: dict[int, dict[str, int]] = field(default_factory=dict)
    standing: dict[int, tuple[float, str]] = field(default_factory=dict)
    unanswered: tuple[float, str] | None = None
    evaluated: float | None = None
    channels: dict[str, tuple[float, str]] = field(default_factory=dict)
    notifications: dict[tuple[str, str], int] = field(default_factory=dict)
    forwarded: Counter[str] = field(default_factory=Counter)
    records_applied: int = 0
    events_applied: int = 0
    dead_letters: int = 0
    commits: int = 0
    commit_seconds: float = 0.0
    fenced: int = 0
    backoffs: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    last_iteration: float = field(default_factory=time.monotonic)
    last_progress: float = field(default_factory=time.monotonic)

    def stuck(self) -> list[str]:
        """What only a restart cures; empty while the loop goes round."""
        silent = time.monotonic() - self.last_iteration
        return [f"the worker's loop has been stuck for {silent:.0f} s"] if silent > self.stalled_after_seconds else []

    def problems(self) -> list[str]:
        """What is wrong; empty where the worker does its work."""
        now = time.monotonic()
        found = [f"{name} has stopped: {error}" for name, error in self.failed.items()] + self.stuck()
        if self.waiting_for is not None:
            found.append(self.waiting_for)
        for number, (since, reason) in sorted(self.standing.items()):
            if now - since > _STANDS_AFTER_SECONDS:
                found.append(f"partition {number} stands for {now - since:.0f} s: {reason}")
        for name, (since, reason) in sorted(self.channels.copy().items()):
            if now - since > _STANDS_AFTER_SECONDS:
                found.append(f"channel {name} waits for {now - since:.0f} s: {reason}")
        if self.unanswered is not None:
            since, reason = self.unanswered
            found.append(f"no answer for {now - since:.0f} s: {reason}")
        if self.is_stalled():
            found.append(f"lag of {self.lag} records and no progress for {now - self.last_progress:.0f} s")
        if self.evaluated is not None and now - self.evaluated > _EVALUATED_WITHIN_SECONDS:
            found.append(f"no alert was judged for {now - self.evaluated:.0f} s")
        return found

    def is_stalled(self) -> bool:
        """Whether there is lag and no projection has moved for too long."""
        return bool(self.lag) and time.monotonic() - self.last_progress > self.stalled_after_seconds

    def waits(self, channel: str, reason: str | None) -> None:
        """Notes what a channel waits for; `None`: for nothing any more."""
        if reason is None:
            if self.channels.pop(channel, None) is not None:
                _logger.info("channel_resumed", channel=channel)
        elif channel not in self.channels:
            self.channels[channel] = (time.monotonic(), reason)
            _logger.warning("channel_waits", channel=channel, reason=reason)

    def iterated(self) -> None:
        """Notes that a loop without lag went round, such as that of the alerts, or one that waits."""
        self.last_iteration = self.last_progress = time.monotonic()

    def committed(self, records: int, events: int, dead_letters: int, seconds: float) -> None:
        """Notes a commit that went through, and how long it took."""
        self.records_applied += records
        self.events_applied += events
        self.dead_letters += dead_letters
        self.commits += 1
        self.commit_seconds += seconds
        self.progressed()

    def progressed(self) -> None:
        """Notes that a commit went through, or that there was nothing to do."""
        self.last_progress = time.monotonic()


def serve_health(health: Health, host: str, port: int) -> uvicorn.Server:
    """Serves `GET /livez`, `/readyz` and `/health` (the same as `/readyz`): 200, or 503 with the problems; `/metrics`.

    Returns:
        The running server; set its `should_exit` to end it.

    Raises:
        HealthPortError: nothing can listen there.
    """

    def body(problems: list[str], bad: str, good: str) -> JSONResponse:
        facts = {
            "status": bad if problems else good,
            "problems": problems,
            "lag": health.lag,
            "partitions": health.partitions,
            "projections": list(health.projections),
            "events_applied": health.events_applied,
            "commits": health.commits,
            "fenced": health.fenced,
        }
        return JSONResponse(facts, status_code=503 if problems else 200)

    async def live(_request: Request) -> JSONResponse:
        return body(health.stuck(), "stuck", "alive")

    async def ready(_request: Request) -> JSONResponse:
        return body(health.problems(), "unhealthy", "healthy")

    async def metrics(_request: Request) -> Response:
        return answer_metrics(health)

    # Bound before the thread starts: there a failure would end the server alone, and probes would ask another process.
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise HealthPortError(
            f"health cannot be served on {host}:{port}: {reason}. End what listens there, or give another port"
        ) from error
    answers = {"/livez": live, "/readyz": ready, "/health": ready, "/metrics": metrics}
    application = Starlette(routes=[Route(path, answer) for path, answer in answers.items()])
    server = uvicorn.Server(
        uvicorn.Config(application, host=host, port=port, log_level="warning", access_log=False, lifespan="off")
    )
    threading.Thread(target=server.run, args=([listener],), name="runtap-health", daemon=True).start()
    return server
