"""What stands before every route: whose name was called, who calls, and what the answer may do in a browser."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from typing import TypedDict

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_HEADER_BYTES = 16_384
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


class Guard:
    """Wraps an application, so that no route can be without it."""

    def __init__(self, app: ASGIApp, hosts: Collection[str], token: str | None, open_paths: Collection[str]) -> None:
        """Args:
        app: what it guards.
        hosts: the names that the server is called by, in lower case; another is that of a page whose name was made to
            resolve to this machine.
        token: what callers must have; `None`: nothing.
        open_paths: what is given without it.
        """
        self._app = app
        self._hosts = frozenset(hosts)
        self.open_paths = frozenset(open_paths)
        self._digest = None if token is None else _digest(token.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers itself what may not pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [
                    *message["headers"],
                    *((name, value) for name, value in added if name not in names),
                ]
            await send(message)

        refusal = self._refusal(scope)
        await (self._app if refusal is None else refusal)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            return refuse(431, f"headers of more than {MAX_HEADER_BYTES:,} bytes")
        headers: dict[bytes, bytes] = dict(scope["headers"])
        host = _name_of(headers.get(b"host", b"").decode("latin-1"))
        if host not in self._hosts:
            return refuse(421, f"this server is not called {host!r}: --allow-host names others")
        if scope["method"] not in ("GET", "HEAD"):
            return refuse(405, "figures are only read: GET", {"allow": "GET, HEAD"})
        if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
            return refuse(413, "a request has no body here")
        if self._digest is None or scope["path"] in self.open_paths:
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Of digests, so that neither its length nor its beginning shows in the time it takes.
        if scheme.lower() == b"bearer" and hmac.compare_digest(_digest(given.strip()), self._digest):
            return None
        return refuse(401, "expected Authorization: Bearer and the token", {"www-authenticate": "Bearer"})


class Refusal(TypedDict):
    """What is wrong."""

    error: str


def refuse(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An answer that says what is wrong."""
    body: Refusal = {"error": message}
    return JSONResponse(body, status_code=status, headers=headers)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _name_of(host: str) -> str:
    name = host.lower()
    if name.startswith("["):
        return name.partition("]")[0][1:]
    return name.rpartition(":")[0] if name.count(":") == 1 else name
