"""A model server that writes down what it answered: the other side of the whole pipeline's sum. Imports nothing of
runtap.

    python fake_model.py ANSWERS_FILE

What it does is said by the words of the last message: `session=… do=…`, one of

    answer            an answer, in one piece or as a stream
    unmetered         an answer without usage
    tools:NAME,…      calls of these tools, and an answer once their results are there
    fail:STATUS       an HTTP error, every time
    fail-once:STATUS  an HTTP error, then an answer
    silent            nothing, until the client has gone
    unheard           the same, for a client that will be cancelled
    endless           a stream that goes on until the client has gone

It prints its port, and appends a JSON line for every request it took: what the client can know of it.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ANSWERS_AS = {
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "o4-mini": "o4-mini-2025-04-16",
    "house-model-7b": "house-model-7b",
}
_SILENCE_SECONDS = 3.0


class Answers:
    """The file, and how often each request came."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")
        self._lock = threading.Lock()
        self._seen: dict[str, int] = {}

    def attempt(self, digest: str) -> int:
        with self._lock:
            self._seen[digest] = self._seen.get(digest, 0) + 1
            return self._seen[digest]

    def write(self, line: dict[str, Any]) -> None:
        with self._lock:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


class Handler(BaseHTTPRequestHandler):
    """Chat completions."""

    protocol_version = "HTTP/1.1"
    # Head and body are written apart, which costs 40 ms a request with it.
    disable_nagle_algorithm = True
    answers: Answers

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        words = dict(re.findall(r"(session|do)=(\S+)", self._question(body)))
        line = {
            "request": digest,
            # The SDK's own retries are no further calls of LangChain's.
            "is_retry": self.headers.get("x-stainless-retry-count", "0") != "0",
            "session": words["session"],
            "asked_for": body["model"],
            "model": None,
            "error": None,
            "usage": None,
        }
        attempt = self.answers.attempt(digest)
        kind, _, detail = words["do"].partition(":")
        if kind == "fail" or (kind == "fail-once" and attempt == 1):
            self.answers.write({**line, "error": detail})
            self._send_json(int(detail), {"error": {"message": f"told to fail with {detail}", "type": "told"}})
        elif kind in ("silent", "unheard", "endless"):
            self.answers.write({**line, "error": kind})
            self._never_end(body, is_stream=kind == "endless")
        else:
            self._answer(body, line, kind, detail.split(","), random.Random(f"{digest}:{attempt}"))

    def _question(self, body: dict[str, Any]) -> str:
        return next(str(message["content"]) for message in reversed(body["messages"]) if message["role"] == "user")

    def _answer(
        self, body: dict[str, Any], line: dict[str, Any], kind: str, tools: list[str], dice: random.Random
    ) -> None:
        usage = _usage(body["model"], dice)
        message: dict[str, Any] = {"role": "assistant", "content": "It is so. " * 3}
        if kind == "tools" and body["messages"][-1]["role"] != "tool":
            message = {"role": "assistant", "content": None, "tool_calls": [_tool_call(name, dice) for name in tools]}
        reason = "tool_calls" if message["content"] is None else "stop"
        model = ANSWERS_AS[body["model"]]
        is_stream = bool(body.get("stream"))
        is_metered = kind != "unmetered"
        if is_stream:
            is_metered = bool((body.get("stream_options") or {}).get("include_usage"))
        self.answers.write({**line, "model": model, "usage": usage if is_metered else None})
        if is_stream:
            self._send_stream(model, message["content"].split(), usage if is_metered else None)
            return
        choice = {"index": 0, "message": message, "finish_reason": reason}
        answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice]}
        self._send_json(200, {**answer, "usage": usage} if is_metered else answer)

    def _send_json(self, status: int, answer: dict[str, Any]) -> None:
        raw = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _begin_stream(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()

    def _send_chunk(self, model: str, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> None:
        chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
        self.wfile.write(f"data: {json.dumps({**chunk, 'choices': choices, 'usage': usage})}\n\n".encode())
        self.wfile.flush()

    def _send_stream(self, model: str, words: list[str], usage: dict[str, Any] | None) -> None:
        self._begin_stream()
        for word in words:
            self._send_chunk(model, [_choice(word)], None)
        self._send_chunk(model, [{"index": 0, "delta": {}, "finish_reason": "stop"}], None)
        if usage is not None:
            self._send_chunk(model, [], usage)
        self.wfile.write(b"data: [DONE]\n\n")

    def _never_end(self, body: dict[str, Any], *, is_stream: bool) -> None:
        deadline = time.monotonic() + _SILENCE_SECONDS
        if is_stream:
            self._begin_stream()
        try:
            while time.monotonic() < deadline:
                if is_stream:
                    self._send_chunk(ANSWERS_AS[body["model"]], [_choice("more ")], None)
                time.sleep(0.05)
        except ConnectionError:
            pass
        self.close_connection = True


def _choice(word: str) -> dict[str, Any]:
    return {"index": 0, "delta": {"role": "assistant", "content": word}, "finish_reason": None}


def _tool_call(name: str, dice: random.Random) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps({"order": dice.randint(1, 999)})}
    return {"id": f"call_{dice.getrandbits(60):015x}", "type": "function", "function": function}


def _usage(model: str, dice: random.Random) -> dict[str, Any]:
    prompt, completion = dice.randint(20, 4_000), dice.randint(1, 900)
    cached = dice.randrange(prompt) if dice.random() < 0.4 else 0
    reasoning = dice.randrange(completion) if model.startswith("o") else 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


class Server(ThreadingHTTPServer):
    """A thread a connection; connections that wait do not hold up its end."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        # A client that has gone is part of the play.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*_)


def main() -> None:
    """Serves until the process is ended."""
    Handler.answers = Answers(Path(sys.argv[1]))
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)  # noqa: T201
    server.serve_forever()


if __name__ == "__main__":
    main()
