"""A LangSmith on this machine: its ingest, with its rules for ids, and what its own client reads.

It takes no run that is called `poison`.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import cramjam
import uvicorn
from langsmith import Client
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtap_demo.kafka.ports import free_ports
from worker_process import wait_until

# What a path answers to its nth request, from 1; `None`: what it should.
Misbehave = Callable[[str, int], Awaitable[Response | None]]
KEY = "lsv2_pt_0123456789abcdef_0123456789"
_PROJECTS = uuid.UUID(int=7)


async def _behave(_path: str, _number: int) -> Response | None:
    return None


@dataclass
class LangSmithServer:
    """What came. `sent` counts the operations of each run by kind, `conflicts` posts of runs that were there."""

    port: int
    info: dict[str, Any] = field(default_factory=dict)
    misbehave: Misbehave = _behave
    has_multipart: bool = True
    most_bytes: int = 2**30
    keeps_content: bool = True
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    feedback: dict[str, dict[str, Any]] = field(default_factory=dict)
    sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    conflicts: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Client:
        """LangSmith's own client."""
        return Client(api_url=self.url, api_key=KEY, auto_batch_tracing=False)

    def take(self, operations: list[tuple[str, dict[str, Any]]]) -> int:
        """Stores what is right; says with which status to answer."""
        for _, run in operations:
            ids = [part.partition("Z")[2] for part in run["dotted_order"].split(".")]
            parents = [None, *ids]
            parent = run.get("parent_run_id", parents[-2])
            is_right = (run["id"], run["trace_id"], parent) == (ids[-1], ids[0], parents[-2])
            if not is_right or run["name"] == "poison":
                return 422
        status = 202
        for kind, run in operations:
            self.sent[kind, run["id"]] += 1
            if not self.keeps_content:
                for name in {*run} - {"id", "session_name", "end_time"}:
                    del run[name]
            known = self.runs.get(run["id"])
            if kind == "post" and known is not None:
                self.conflicts += 1
                status = 409
            elif known is None:
                self.runs[run["id"]] = run
            else:
                known.update(run)
        return status

    def shown(self, run: dict[str, Any]) -> dict[str, Any]:
        """A run as the API has it: what it used and cost itself, or what is below it did."""
        below = [one for one in self.runs.values() if f"{run['dotted_order']}." in f"{one['dotted_order']}."]
        usages = [one.get("extra", {}).get("metadata", {}).get("usage_metadata") or {} for one in below]
        names = {"total_cost": "total_cost", "prompt_cost": "input_cost", "completion_cost": "output_cost"}
        names |= {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens", "total_tokens": "total_tokens"}
        sums: dict[str, Any] = {}
        for shown, name in names.items():
            found = [usage[name] for usage in usages if usage.get(name) is not None]
            sums[shown] = sum(found) if found else None
        status = "error" if run.get("error") else "success" if run.get("end_time") else "pending"
        return {**run, **sums, "status": status, "session_id": str(uuid.uuid5(_PROJECTS, run["session_name"]))}


def _app(server: LangSmithServer) -> Starlette:
    def guarded(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            path = request.url.path
            server.requests[path] += 1
            server.headers.append(dict(request.headers))
            if (odd := await server.misbehave(path, server.requests[path])) is not None:
                return odd
            if path != "/info" and request.headers.get("x-api-key") != KEY:
                return Response(status_code=401)
            return await answer(request)

        return endpoint

    async def body_of(request: Request) -> bytes:
        body = await request.body()
        if request.headers.get("content-encoding") == "zstd":
            body = bytes(cramjam.zstd.decompress(body))
        return body

    async def info(_request: Request) -> Response:
        return JSONResponse({"version": "0.15.0", **server.info})

    async def multipart(request: Request) -> Response:
        if not server.has_multipart:
            return Response(status_code=404)
        body = await body_of(request)
        if len(body) > server.most_bytes:
            return Response(status_code=413)
        boundary = request.headers["content-type"].partition("boundary=")[2].encode()
        operations: dict[tuple[str, str], dict[str, Any]] = {}
        first, *parts, last = body.split(b"--" + boundary)
        assert (first, last.strip()) == (b"", b"--")
        for part in parts:
            head, _, content = part.partition(b"\r\n\r\n")
            kind, run_id, *name = head.decode().partition('name="')[2].partition('"')[0].split(".")
            value = json.loads(content, parse_float=Decimal)
            found = operations.setdefault((kind, run_id), {})
            found.update({name[0]: value} if name else value)
        return Response(status_code=server.take([(kind, run) for (kind, _), run in operations.items()]))

    async def batch(request: Request) -> Response:
        body = await body_of(request)
        if len(body) > server.most_bytes:
            return Response(status_code=413)
        found = json.loads(body, parse_float=Decimal)
        return Response(status_code=server.take([(kind, run) for kind in ("post", "patch") for run in found[kind]]))

    async def add_feedback(request: Request) -> Response:
        given = json.loads(await body_of(request))
        run = server.runs.get(given["run_id"])
        if run is None:
            return Response(status_code=404)
        status = 409 if given["id"] in server.feedback else 200
        server.feedback[given["id"]] = {
            **given,
            "trace_id": run["trace_id"],
            "modified_at": given["created_at"],
        }
        return JSONResponse({}, status_code=status)

    async def list_feedback(request: Request) -> Response:
        wanted = request.query_params.getlist("run")
        return JSONResponse([one for one in server.feedback.values() if one["run_id"] in wanted])

    async def query(request: Request) -> Response:
        asked = json.loads(await request.body())
        found = list(map(server.shown, server.runs.values()))
        found = [run for run in found if not asked.get("session") or run["session_id"] in asked["session"]]
        found = [run for run in found if asked.get("trace") in (None, run["trace_id"])]
        return _json({"runs": found, "cursors": {"next": None}})

    async def read(request: Request) -> Response:
        run = server.runs.get(request.path_params["id"])
        return Response(status_code=404) if run is None else _json(server.shown(run))

    async def projects(request: Request) -> Response:
        name = request.query_params["name"]
        project: dict[str, Any] = {
            "id": str(uuid.uuid5(_PROJECTS, name)),
            "tenant_id": str(uuid.UUID(int=1)),
            "name": name,
        }
        project["reference_dataset_id"] = None
        return JSONResponse([project] if any(run["session_name"] == name for run in server.runs.values()) else [])

    async def patch_run(request: Request) -> Response:
        run = json.loads(await request.body(), parse_float=Decimal)
        server.take([("patch", {**server.runs[request.path_params["id"]], **run, "id": request.path_params["id"]})])
        return Response(status_code=202)

    async def post_run(request: Request) -> Response:
        run = json.loads(await request.body(), parse_float=Decimal)
        return Response(status_code=server.take([("post", {"parent_run_id": None, **run})]))

    return Starlette(
        routes=[
            Route("/info", guarded(info)),
            Route("/runs/multipart", guarded(multipart), methods=["POST"]),
            Route("/runs/batch", guarded(batch), methods=["POST"]),
            Route("/runs/query", guarded(query), methods=["POST"]),
            Route("/runs", guarded(post_run), methods=["POST"]),
            Route("/runs/{id}", guarded(read)),
            Route("/runs/{id}", guarded(patch_run), methods=["PATCH"]),
            Route("/feedback", guarded(add_feedback), methods=["POST"]),
            Route("/feedback", guarded(list_feedback)),
            Route("/sessions", guarded(projects)),
        ]
    )


def _json(value: Any) -> Response:
    # Decimals with all of their digits, as text, which the client's own types read.
    return Response(json.dumps(value, default=str), media_type="application/json")


@contextmanager
def langsmith_server(port: int | None = None, **options: Any) -> Iterator[LangSmithServer]:
    """A server, while the block runs."""
    found = LangSmithServer(port or free_ports(1)[0], **options)
    config = uvicorn.Config(
        _app(found), port=found.port, log_level="error", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    with suppress(ClientDisconnect):
        thread = threading.Thread(target=server.run, name="langsmith")
        thread.start()
        try:
            wait_until(lambda: server.started, 10)
            yield found
        finally:
            server.should_exit = True
            thread.join(10)
