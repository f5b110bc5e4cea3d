"""LangSmith's ingest over HTTP: `/info`, `/runs/multipart` (`/runs/batch` where there is none) and `/feedback`.

Redirects are not followed: the key is for that address alone.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import NamedTuple

import cramjam
import httpx2
import msgspec

from runtap_consumers.forward.account import Account
from runtap_consumers.forward.runs import RunOperation
from runtap_consumers.replies import Reply

TIMEOUT_SECONDS = 30.0
_MOST_ANSWER_BYTES = 2**20


class Limits(NamedTuple):
    """What LangSmith takes in a request, and whether it takes it compressed."""

    operations: int = 100
    size_bytes: int = 20 * 2**20
    takes_zstd: bool = False


class _Ingest(msgspec.Struct):
    size_limit: int | None = None
    size_limit_bytes: int | None = None


class _Flags(msgspec.Struct):
    zstd_compression_enabled: bool = False


class _Info(msgspec.Struct):
    version: str | None = None
    batch_ingest_config: _Ingest | None = None
    instance_flags: _Flags | None = None


class LangSmith:
    """One account's LangSmith. Whatever the server does is an answer; nothing is tried again here."""

    def __init__(self, account: Account, seconds: float | None = None) -> None:
        """`seconds`: how long an answer may take, if not `TIMEOUT_SECONDS`."""
        self.endpoint = account.endpoint
        self._seconds = seconds or TIMEOUT_SECONDS
        self.limits = Limits()
        self.version: str | None = None
        self._has_multipart = True
        agent = {"user-agent": f"runtap/{version('runtap')}"}
        self._client = httpx2.AsyncClient(headers={**account.headers(), **agent}, timeout=self._seconds)
        self.close = self._client.aclose

    async def ask_limits(self) -> Reply:
        """Reads `/info`; where there is none, what is usual holds."""
        reply, body = await self._ask("GET", "/info")
        if not reply.is_delivered:
            return reply
        try:
            info = msgspec.json.decode(body, type=_Info)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return reply._replace(status=None, reason="/info is none of LangSmith's")
        ingest, usual = info.batch_ingest_config or _Ingest(), Limits()
        self.limits = Limits(
            max(ingest.size_limit or usual.operations, 1),
            max(ingest.size_limit_bytes or usual.size_bytes, 1),
            info.instance_flags is not None and info.instance_flags.zstd_compression_enabled,
        )
        self.version = info.version
        return reply

    async def send(self, operations: Sequence[RunOperation]) -> Reply:
        """Posts and patches runs, in that order."""
        if self._has_multipart:
            body, headers = await asyncio.to_thread(_multipart, operations, self.limits.takes_zstd)
            reply, _ = await self._ask("POST", "/runs/multipart", body, headers)
            if reply.status != 404:
                return reply
        reply, _ = await self._ask("POST", "/runs/batch", _batch(operations))
        if reply.is_delivered or reply.status == 409:
            self._has_multipart = False
        return reply

    async def send_feedback(self, feedback: bytes) -> Reply:
        """Posts what somebody thought of a run. 404: there is no such run, or not yet."""
        return (await self._ask("POST", "/feedback", feedback))[0]

    async def _ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[Reply, bytes]:
        headers = headers or ({} if body is None else {"content-type": "application/json"})
        found = b""
        try:
            async with asyncio.timeout(self._seconds):
                request = self._client.build_request(method, f"{self.endpoint}{path}", content=body, headers=headers)
                answer = await self._client.send(request, stream=True, follow_redirects=False)
                try:
                    # Nobody knows how long an answer is.
                    async for chunk in answer.aiter_bytes():
                        found += chunk
                        if len(found) > _MOST_ANSWER_BYTES:
                            break
                finally:
                    await answer.aclose()
        except TimeoutError:
            return Reply(None, f"no answer within {self._seconds:.0f} s"), b""
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError) as error:
            return Reply(None, str(error) or type(error).__name__), b""
        return Reply(answer.status_code, f"HTTP {answer.status_code}", answer.headers.get("retry-after")), found


def _multipart(operations: Sequence[RunOperation], compresses: bool) -> tuple[bytes, dict[str, str]]:
    boundary = uuid.uuid4().hex.encode()
    written = []
    for kind, operation in _by_kind(operations):
        name = f"{kind}.{operation.run_id}"
        for part, value in (("", operation.fields), *operation.parts.items()):
            head = (
                b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n'
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            )
            written.append(head % (boundary, f"{name}.{part}".rstrip(".").encode(), len(value)))
            written += value, b"\r\n"
    written.append(b"--%b--\r\n" % boundary)
    body = b"".join(written)
    headers = {"content-type": f"multipart/form-data; boundary={boundary.decode()}"}
    if compresses:
        before = len(body)
        body = bytes(cramjam.zstd.compress(body, level=1))
        headers |= {
            "content-encoding": "zstd",
            "x-pre-compressed-size": str(before),
            "x-post-compressed-size": str(len(body)),
        }
    return body, headers


def _batch(operations: Sequence[RunOperation]) -> bytes:
    runs: dict[str, list[bytes]] = {"post": [], "patch": []}
    for kind, operation in _by_kind(operations):
        parts = b"".join(b',"%b":%b' % (name.encode(), value) for name, value in operation.parts.items())
        runs[kind].append(operation.fields[:-1] + parts + b"}")
    return b"{%b}" % b",".join(b'"%b":[%b]' % (kind.encode(), b",".join(found)) for kind, found in runs.items())


def _by_kind(operations: Sequence[RunOperation]) -> Iterator[tuple[str, RunOperation]]:
    return ((kind, operation) for operation in operations for kind in operation.kinds)
