"""The page: files of the folder `page`, which hold no figures, so that they are given without a token."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
# Where the page itself is.
HOME = "index.html"


def page_routes() -> list[Route]:
    """One route a file, and `/`."""
    files = [path for path in sorted(_FOLDER.rglob("*")) if path.suffix in _TYPES]
    routes = {f"/{path.relative_to(_FOLDER).as_posix()}": _endpoint(path) for path in files}
    return [Route(path, endpoint) for path, endpoint in {"/": routes.pop(f"/{HOME}"), **routes}.items()]


def _endpoint(path: Path) -> Callable[[Request], Any]:
    body = path.read_bytes()
    headers = {"content-type": _TYPES[path.suffix], "etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"'}

    async def endpoint(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers={"etag": headers["etag"]})
        return Response(body, headers=headers)

    return endpoint
