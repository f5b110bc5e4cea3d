"""A Kafka node behind a proxy that does to its clients what networks and brokers do in an outage."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Literal, NamedTuple, TypeVar

from aiokafka.protocol.api import RequestHeader_v1
from aiokafka.protocol.produce import ProduceRequest_v7, ProduceResponse_v7

from runtap_demo.kafka.broker import EmbeddedKafka

Mode = Literal["pass", "refuse", "swallow", "reset"]
T = TypeVar("T")


class Answer(NamedTuple):
    """What a produce request is answered with instead. `is_appended`: whether the node gets it all the same."""

    code: int
    is_appended: bool = False


class Attempt(NamedTuple):
    """A produce request for one partition: its batch's bytes, and the error code of the answer that the client got."""

    partition: int
    batch: bytes
    code: int


class KafkaProxy:
    """Passes one connection's requests on one after another, as a node works on them, in a thread of its own.

    `mode`: `pass`; `refuse` connections, and reset those there are; `swallow` what comes, so that those connections
    are dead for good; `reset` the connection in the middle of the answer to a produce request.
    """

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        # What the next produce requests get.
        self.answers: list[Answer] = []
        self._mode: Mode = "pass"
        self._target = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kafka-proxy", daemon=True)
        self._thread.start()
        self.port = 0
        self._call(self._listen())

    def _call(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def set_target(self, port: int) -> None:
        """Says where the node is."""
        self._target = port

    def set_mode(self, mode: Mode) -> None:
        """Changes what happens from now on."""

        async def change() -> None:
            self._mode = mode
            if mode == "refuse" and self._server is not None:
                self._server.close()
                self._server = None
                self._abort_all()
            elif mode == "pass" and self._server is None:
                await self._listen()

        self._call(change())

    def cut(self) -> None:
        """Resets every connection."""

        async def abort() -> None:
            self._abort_all()

        self._call(abort())

    def close(self) -> None:
        """Ends the thread and all connections."""

        async def end() -> None:
            if self._server is not None:
                self._server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._abort_all()

        self._call(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _abort_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        self._writers.add(writer)
        try:
            node_reader, node_writer = await asyncio.open_connection("127.0.0.1", self._target)
            ends.append(node_writer)
            self._writers.add(node_writer)
            while True:
                request = await _read_frame(reader)
                if self._mode == "swallow":
                    # This connection never says a word again; others may, later.
                    await asyncio.Event().wait()
                answer = await self._answer(request, node_reader, node_writer)
                if self._mode == "reset" and _is_produce(request):
                    writer.write(answer[: len(answer) // 2])
                    await writer.drain()
                    return
                writer.write(answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            self._writers.difference_update(ends)
            for end in ends:
                end.transport.abort()

    async def _answer(
        self, request: bytes, node_reader: asyncio.StreamReader, node_writer: asyncio.StreamWriter
    ) -> bytes:
        """The answer as it goes to the client, with its length in front."""
        instead = self.answers.pop(0) if self.answers and _is_produce(request) else None
        answer = b""
        if instead is None or instead.is_appended:
            node_writer.write(struct.pack(">i", len(request)) + request)
            await node_writer.drain()
            answer = await _read_frame(node_reader)
        if _is_produce(request):
            answer = self._note(request, answer, instead)
        return struct.pack(">i", len(answer)) + answer

    def _note(self, request: bytes, answer: bytes, instead: Answer | None) -> bytes:
        stream = BytesIO(request)
        _, version, correlation, _ = RequestHeader_v1.SCHEMA.decode(stream)
        assert version == ProduceRequest_v7.API_VERSION, "aiokafka has learnt another version"
        batches = {
            (topic, partition): bytes(batch)
            for topic, partitions in ProduceRequest_v7.decode(stream).topics
            for partition, batch in partitions
        }
        if instead is not None:
            places = [(topic, [(partition, instead.code, -1, -1, -1)]) for topic, partition in batches]
            answer = struct.pack(">i", correlation) + ProduceResponse_v7(places, 0).encode()
        for topic, partitions in ProduceResponse_v7.decode(answer[4:]).topics:
            self.attempts += [Attempt(p[0], batches[topic, p[0]], p[1]) for p in partitions]
        return answer


def _is_produce(request: bytes) -> bool:
    return request[:2] == b"\0\0"


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack(">i", await reader.readexactly(4))
    return await reader.readexactly(length)


class ProxiedKafka(NamedTuple):
    """A node, its proxy, and how clients reach it: by a name, through the proxy."""

    node: EmbeddedKafka
    proxy: KafkaProxy
    bootstrap_servers: str


@contextmanager
def proxied_kafka() -> Iterator[ProxiedKafka]:
    """One node of real Kafka that is reached through a proxy alone."""
    proxy = KafkaProxy()
    try:
        address = f"localhost:{proxy.port}"
        with EmbeddedKafka(settings={"advertised.listeners": f"PLAINTEXT://{address}"}) as node:
            proxy.set_target(node.nodes[0].port)
            yield ProxiedKafka(node, proxy, address)
    finally:
        proxy.close()
