"""Health of a worker, for compose and Kubernetes: healthy means progress.

It is served from a thread of its own, so that a worker whose loop hangs still answers, with what is wrong.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from runtap_consumers.errors import HealthPortError


@dataclass
class Health:
    """What a worker knows of itself. Written by the worker, read by the health server.

    `stalled_after_seconds`: how long there may be lag without progress. Times are `time.monotonic()`.
    """

    projections: tuple[str, ...]
    stalled_after_seconds: float = 60.0
    partitions: list[int] = field(default_factory=list)
    lag: int = 0
    events_applied: int = 0
    commits: int = 0
    fenced: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    last_iteration: float = field(default_factory=time.monotonic)
    last_progress: float = field(default_factory=time.monotonic)

    def problems(self) -> list[str]:
        """What is wrong; empty where the worker is healthy."""
        now = time.monotonic()
        found = [f"{name} has stopped: {error}" for name, error in self.failed.items()]
        if now - self.last_iteration > self.stalled_after_seconds:
            found.append(f"the worker's loop has been stuck for {now - self.last_iteration:.0f} s")
        if self.is_stalled():
            found.append(f"lag of {self.lag} records and no progress for {now - self.last_progress:.0f} s")
        return found

    def is_stalled(self) -> bool:
        """Whether there is lag and no projection has moved for too long."""
        return self.lag > 0 and time.monotonic() - self.last_progress > self.stalled_after_seconds

    def iterated(self) -> None:
        """Notes that a loop without lag, such as that of the alerts, went round."""
        self.last_iteration = self.last_progress = time.monotonic()

    def progressed(self) -> None:
        """Notes that a commit went through, or that there was nothing to do."""
        self.last_progress = time.monotonic()


def serve_health(health: Health, port: int) -> uvicorn.Server:
    """Serves `GET /health` on all interfaces: 200 where healthy, 503 with the problems where not.

    Returns:
        The running server; set its `should_exit` to end it.

    Raises:
        HealthPortError: nothing can listen there.
    """

    async def answer(_request: Request) -> JSONResponse:
        problems = health.problems()
        body = {
            "status": "unhealthy" if problems else "healthy",
            "problems": problems,
            "projections": list(health.projections),
            "partitions": health.partitions,
            "lag": health.lag,
            "events_applied": health.events_applied,
            "commits": health.commits,
            "fenced": health.fenced,
        }
        return JSONResponse(body, status_code=503 if problems else 200)

    # Bound before the thread starts: there a failure would end the server alone, and probes would ask another process.
    try:
        listener = socket.create_server(("0.0.0.0", port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise HealthPortError(
            f"health cannot be served on port {port}: {reason}. End what listens there, or give another port"
        ) from error
    application = Starlette(routes=[Route("/health", answer)])
    server = uvicorn.Server(
        uvicorn.Config(application, host="0.0.0.0", port=port, log_level="warning", access_log=False, lifespan="off")
    )
    threading.Thread(target=server.run, args=([listener],), name="runtap-health", daemon=True).start()
    return server
