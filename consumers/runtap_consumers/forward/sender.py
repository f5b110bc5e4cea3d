"""Getting a hand of runs and feedback to LangSmith: again and again, for as long as that can help."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

import structlog

from runtap_consumers.errors import ForwardRefusedError
from runtap_consumers.forward.langsmith import LangSmith
from runtap_consumers.forward.runs import RunOperation
from runtap_consumers.replies import Reply, pause_seconds
from runtap_consumers.worker.health import Health

_REQUESTS_AT_ONCE = 4
# Smaller than LangSmith takes: so much is held more than once while it is written and compressed.
_MOST_REQUEST_BYTES = 2 * 2**20
# LangSmith takes runs in before it can find them.
_FEEDBACK_ATTEMPTS = 4
_CHANNEL = "langsmith"

_logger = structlog.get_logger(__name__)


class RunSender:
    """Sends what it is given, and counts what becomes of it."""

    def __init__(self, langsmith: LangSmith, health: Health) -> None:
        self._langsmith, self._health = langsmith, health
        self._has_delivered = False
        self._slots = asyncio.Semaphore(_REQUESTS_AT_ONCE)

    async def ask_limits(self) -> None:
        """Asks LangSmith for its limits until it answers.

        Raises:
            ForwardRefusedError: it does not want the key.
        """
        await self._repeat("info", self._langsmith.ask_limits)

    async def deliver(self, runs: Sequence[RunOperation], feedback: Sequence[bytes]) -> None:
        """Returns when LangSmith has everything that it will ever take.

        Args:
            runs: each but once, so that requests may overtake each other.
            feedback: of these and of other runs.

        Raises:
            ForwardRefusedError: LangSmith does not want the key, and never took anything with it.
        """
        refused = self._health.forwarded.copy()
        await self._side_by_side([self._send_runs(chunk) for chunk in self._chunks(runs)])
        await self._side_by_side([self._send_feedback(one) for one in feedback])
        new = self._health.forwarded - refused
        if given_up := {outcome: count for outcome, count in new.items() if outcome.startswith("refused")}:
            _logger.warning("runs_given_up", endpoint=self._langsmith.endpoint, **given_up)

    async def _side_by_side(self, works: Sequence[Awaitable[None]]) -> None:
        async def one(work: Awaitable[None]) -> None:
            async with self._slots:
                await work

        try:
            async with asyncio.TaskGroup() as group:
                for work in works:
                    group.create_task(one(work))
        except* ForwardRefusedError as errors:
            raise errors.exceptions[0] from None

    def _chunks(self, runs: Sequence[RunOperation]) -> Iterator[list[RunOperation]]:
        limits = self._langsmith.limits
        most_bytes, chunk, room, size_bytes = min(limits.size_bytes, _MOST_REQUEST_BYTES), list[RunOperation](), 0, 0
        for run in runs:
            room -= len(run.kinds)
            size_bytes += run.size_bytes
            if chunk and (room < 0 or size_bytes > most_bytes):
                yield chunk
                chunk = []
            if not chunk:
                room, size_bytes = limits.operations - len(run.kinds), run.size_bytes
            chunk.append(run)
        if chunk:
            yield chunk

    async def _send_runs(self, operations: list[RunOperation]) -> None:
        reply = await self._repeat("runs", lambda: self._langsmith.send(operations))
        if _has_it(reply):
            self._count("delivered", len(operations))
        elif len(operations) > 1:
            # One of them may be what it does not want; and half of it may not be too large.
            middle = len(operations) // 2
            await self._send_runs(operations[:middle])
            await self._send_runs(operations[middle:])
        else:
            self._count(f"refused_{reply.status}")
            _logger.debug("run_refused", run_id=operations[0].run_id, status=reply.status)

    async def _send_feedback(self, feedback: bytes) -> None:
        for attempt in range(1, _FEEDBACK_ATTEMPTS + 1):
            reply = await self._repeat("feedback", lambda: self._langsmith.send_feedback(feedback))
            if reply.status != 404 or attempt == _FEEDBACK_ATTEMPTS:
                break
            await asyncio.sleep(pause_seconds(attempt))
        self._count("feedback_delivered" if _has_it(reply) else f"refused_feedback_{reply.status}")

    async def _repeat(self, work: str, request: Callable[[], Awaitable[Reply]]) -> Reply:
        """Asks until the answer will not change: LangSmith took it, or does not want it."""
        failures = 0
        while self._is_to_repeat(work, reply := await request()):
            failures += 1
            self._count("attempts_failed")
            self._health.waits(f"{_CHANNEL} ({work})", f"{self._langsmith.endpoint}: {reply.reason}")
            await asyncio.sleep(pause_seconds(failures, reply.retry_after))
        self._has_delivered = self._has_delivered or (work != "info" and _has_it(reply))
        self._health.waits(f"{_CHANNEL} ({work})", None)
        return reply

    def _is_to_repeat(self, work: str, reply: Reply) -> bool:
        status = reply.status
        if status in (401, 403):
            if not self._has_delivered:
                raise ForwardRefusedError(
                    f"LangSmith at {self._langsmith.endpoint} refused the key: HTTP {status}. Check LANGSMITH_API_KEY, "
                    "LANGSMITH_ENDPOINT (https://eu.api.smith.langchain.com in the EU) and LANGSMITH_WORKSPACE_ID"
                )
            return True
        # 404 of runs: there is neither of its two doors, so the address is another's.
        is_elsewhere = work == "runs" and (status == 404 or (status or 0) // 100 == 3)
        return reply.is_transient or is_elsewhere

    def _count(self, outcome: str, events: int = 1) -> None:
        self._health.forwarded[outcome] += events


def _has_it(reply: Reply) -> bool:
    """Whether LangSmith has what it was sent, be it since before."""
    return reply.is_delivered or reply.status == 409
