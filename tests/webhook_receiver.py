"""HTTP receivers of webhooks on this machine, good ones and bad ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Status and headers, and the body if there is one.
Answer = tuple[int, dict[str, str]] | tuple[int, dict[str, str], bytes]


@dataclass
class Receiver:
    """What came, at which path, and where to. `answer` says what a path answers to its nth request, from 1."""

    answer: Callable[[str, int], Answer]
    port: int = 0
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def at(self, path: str) -> list[tuple[dict[str, str], bytes]]:
        """Headers, their names in lower case, and bodies of the requests at a path."""
        return [(headers, body) for found, headers, body in list(self.requests) if found == path]

    def ids(self, path: str) -> list[str]:
        """Ids of what came at a path, repeats included."""
        return [headers["webhook-id"] for headers, _ in self.at(path)]

    def hang(self) -> Answer:
        """Answers when the test ends."""
        self.ended.wait(60)
        return 200, {}


@contextmanager
def receiving(answer: Callable[[str, int], Answer] = lambda path, number: (200, {})) -> Iterator[Receiver]:
    """A receiver, while the block runs."""
    receiver = Receiver(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.requests.append((self.path, headers, body))
            status, more, *rest = receiver.answer(self.path, len(receiver.at(self.path)))
            said = rest[0] if rest else b""
            try:
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)
            except OSError:
                # Whoever asked has gone.
                self.close_connection = True

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="receiver")
    thread.start()
    try:
        yield receiver
    finally:
        receiver.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
