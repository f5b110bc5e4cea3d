"""A TCP proxy that can cut what goes through it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

_CHUNK_BYTES = 64 * 1024
Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Proxies:
    """Proxies of 127.0.0.1, all in one thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._open: dict[str, set[asyncio.StreamWriter]] = {}
        # Kinds of connections that nobody gets now.
        self.closed: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()

    def add(self, kind: str, connect: Connect) -> int:
        """Opens a proxy to where `connect` leads.

        Returns:
            Its port.
        """
        return asyncio.run_coroutine_threadsafe(self._add(kind, connect), self._loop).result(10)

    async def _add(self, kind: str, connect: Connect) -> int:
        writers = self._open.setdefault(kind, set())

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.add(writer)
            try:
                if kind in self.closed:
                    raise ConnectionRefusedError
                far_reader, far_writer = await connect()
            except OSError:
                writer.transport.abort()
                writers.discard(writer)
                return
            writers.add(far_writer)
            for source, target in ((reader, far_writer), (far_reader, writer)):
                task = asyncio.create_task(_pump(source, target, (writer, far_writer)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                task.add_done_callback(lambda _: writers.difference_update((writer, far_writer)))

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self._servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    def cut(self, kind: str) -> int:
        """Resets every connection of a kind; the next ones are let through.

        Returns:
            How many ends there were.
        """

        async def abort() -> int:
            writers = list(self._open.get(kind, ()))
            for writer in writers:
                writer.transport.abort()
            return len(writers)

        return asyncio.run_coroutine_threadsafe(abort(), self._loop).result(10)

    def close(self) -> None:
        """Ends the thread and all connections."""
        for kind in self._open:
            self.cut(kind)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


async def _pump(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, both: tuple[asyncio.StreamWriter, ...]
) -> None:
    try:
        while data := await source.read(_CHUNK_BYTES):
            target.write(data)
            await target.drain()
    except OSError:
        pass
    finally:
        for writer in both:
            writer.transport.abort()
