"""The server: routes behind the guard, its health, and how it runs."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import uvicorn
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from runtap_consumers.errors import InputError, StoreError
from runtap_consumers.serve.api import api_routes
from runtap_consumers.serve.guard import MAX_HEADER_BYTES, Guard, refuse
from runtap_consumers.serve.metrics import exposition
from runtap_consumers.serve.openapi import make_document
from runtap_consumers.serve.page_files import page_routes
from runtap_consumers.serve.query import Source
from runtap_consumers.store.read.snapshot import open_snapshot

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Far more than browsers and scrapers of one team open, and below what fills the threads for long.
_CONNECTIONS = 200
_GRACE_SECONDS = 5


def make_app(source: Source, hosts: Collection[str], token: str | None) -> ASGIApp:
    """Everything that is served.

    Args:
        source: where figures come from.
        hosts: names that the server is called by, besides loopback's.
        token: what callers must have; `None`: nothing.
    """

    async def live(_request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(_request: Request) -> Response:
        try:
            await run_in_threadpool(_look, source)
        except StoreError as error:
            return JSONResponse({"status": "unhealthy", "problems": [str(error)]}, status_code=503)
        return JSONResponse({"status": "healthy", "problems": []})

    async def metrics(_request: Request) -> Response:
        try:
            found = await run_in_threadpool(_measure, source)
        except StoreError as error:
            return refuse(503, str(error))
        return Response(found, headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    async def openapi(_request: Request) -> Response:
        return JSONResponse(make_document())

    # Health is asked by whoever restarts the process, and the page asks for the token itself.
    open_routes = [Route("/livez", live), Route("/readyz", ready), *page_routes()]
    described = Route("/api/v1/openapi.json", openapi)
    routes = [*open_routes, Route("/metrics", metrics), described, *api_routes(source)]
    names = {*LOOPBACK, *(host.lower() for host in hosts)}
    return Guard(Starlette(routes=routes), names, token, [route.path for route in open_routes])


def check_address(host: str, token: str | None) -> None:
    """Raises `InputError` where others could read without a token."""
    if token is None and not _is_loopback(host):
        raise InputError(
            f"--host {host}: whoever reaches it could read all figures: set RUNTAP_SERVE_TOKEN, or leave it out"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host in LOOPBACK or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ends at a signal with exit code 0: uvicorn's own dies of it."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def serve(source: Source, host: str, port: int, hosts: Collection[str], token: str | None) -> None:
    """Serves until SIGTERM or SIGINT."""
    app = make_app(source, {host, *hosts}, token)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        lifespan="off",
        # The other implementation has no limit for headers.
        http="h11",
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    asyncio.run(_Server(config).serve())


def _measure(source: Source) -> bytes:
    with source.store.limit(source.seconds), open_snapshot(source.store) as snapshot:
        return exposition(snapshot)


def _look(source: Source) -> None:
    with open_snapshot(source.store):
        pass
