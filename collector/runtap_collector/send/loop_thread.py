"""A thread with an event loop of its own, in which tasks are kept going: `LoopThread`."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from runtap_collector.logs import RareLog, log

TASK_RETRY_SECONDS = 1.0


class _Loop(asyncio.SelectorEventLoop):
    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        try:
            return await super().getaddrinfo(host, port, **options)
        except RuntimeError:
            # At interpreter exit no executor takes work any more, and the last events still have to go.
            return socket.getaddrinfo(host, port, **options)


class LoopThread:
    """Runs `main` until it returns. One use. `on_death` is its last act, should a fault of ours end it."""

    def __init__(self, main: Callable[[], Awaitable[None]], on_death: Callable[[], None]) -> None:
        self._main = main
        self._on_death = on_death
        self._loop: _Loop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._warnings = RareLog()
        self._thread = threading.Thread(target=self._run, name="runtap-sender", daemon=True)

    def start(self) -> None:
        """Starts the thread.

        Raises:
            RuntimeError: the system or a leaving interpreter starts none.
        """
        self._loop = _Loop()
        try:
            self._thread.start()
        except RuntimeError:
            self._loop.close()
            raise

    @property
    def is_over(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def join(self, timeout_seconds: float) -> None:
        """Waits for its end."""
        self._thread.join(timeout_seconds)

    def call(self, function: Callable[[], object]) -> bool:
        """Has the thread call a function. False: it has not begun, or ended."""
        if self._loop is None:
            return False
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            return False
        return True

    def wait_for(self, function: Callable[[], Awaitable[None]], timeout_seconds: float) -> None:
        """Has the thread run a function, and waits for it until time is up."""
        done = threading.Event()

        async def run() -> None:
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(timeout_seconds):
                        await function()
            finally:
                done.set()

        if self.call(lambda: self._keep(asyncio.ensure_future(run()))):
            # A little later than the task's own end, and so that a loop that stands still cannot hold the caller.
            done.wait(timeout_seconds + 0.05)

    # In the thread.

    def supervise(self, name: str, function: Callable[[], Awaitable[None]]) -> None:
        """Runs a function as a task, and again whenever it fails."""

        async def keep() -> None:
            while True:
                try:
                    await function()
                    return
                except Exception:  # noqa: BLE001 - a fault of ours must not end the sending
                    self._warnings.warn("sender_task_failed", task=name, exc_info=True)
                    await asyncio.sleep(TASK_RETRY_SECONDS)

        self._keep(asyncio.create_task(keep(), name=name))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def cancel_tasks(self) -> None:
        """Ends all tasks, and waits for that."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None
        loop.set_exception_handler(self._complain)
        has_died = False
        try:
            loop.run_until_complete(self._main())
        except BaseException:  # noqa: BLE001 - the thread's last words
            log.error("sender_died", exc_info=True)
            has_died = True
        loop.close()
        if has_died:
            self._on_death()

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._warnings.warn(
            "sender_loop_complained", message=context.get("message"), cause=repr(context.get("exception"))
        )
