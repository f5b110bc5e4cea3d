"""What people write, and what models answer, stays in the process unless its owner says otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cramjam
import pytest

from runtap_schemas import RunEnded, encode_event
from topic_log import read_topic
from worker_process import WorkerSetting

MakeTopic = Callable[..., Awaitable[str]]
SECRET = "zebra crossing quietly"
# As it may stand in names, URLs and keys.
FORMS = [separator.join(SECRET.split()) for separator in (" ", "_", "-", "%20")]
COMMANDS = (
    ["report"],
    ["report", "--json", "-"],
    ["runs"],
    ["runs", "--json", "--limit", "0"],
    ["sessions"],
    ["ledger"],
    ["ledger", "--json"],
    ["dead-letters", "list"],
    ["prices", "unmatched"],
)


class _Model(BaseHTTPRequestHandler):
    """Answers, streams or refuses, with the secret."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        if question.startswith("refuse"):
            error = {"message": SECRET, "type": "invalid_request_error", "code": "context_length_exceeded"}
            return self._send(400, "application/json", json.dumps({"error": {**error, "param": SECRET}}))
        message = {"role": "assistant", "content": f"The answer is {SECRET}."}
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        head = {"id": "c-1", "created": 1, "model": "gpt-4o-mini-2024-07-18", "object": "chat.completion"}
        if question.startswith("stream"):
            chunks = [
                {**head, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": message}]},
                {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage},
            ]
            lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
            return self._send(200, "text/event-stream", f"{lines}data: [DONE]\n\n")
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return self._send(200, "application/json", json.dumps({**head, "choices": choices, "usage": usage}))

    def _send(self, status: int, kind: str, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def model_port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def leaks(where: str, text: str | bytes) -> list[str]:
    """The forms of the secret that stand in a text."""
    found = text if isinstance(text, str) else text.decode("utf-8", "replace")
    return [f"{form!r} in {where}" for form in FORMS if form in found]


def dump(database: Path) -> str:
    """Everything in a SQLite file, its log included; blobs in hexadecimal."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return "".join(connection.iterdump())


def run_service(setting: WorkerSetting, port: int, **more: str) -> subprocess.CompletedProcess[str]:
    service = Path(__file__).with_name("leaky_service.py")
    done = subprocess.run(
        [sys.executable, str(service), SECRET, str(port)],
        env={**setting.environment(), **more},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done


async def test_what_people_write_is_in_no_topic_store_log_or_terminal(
    kafka: str, topic_prefix: str, events_topic: MakeTopic, model_port: int, tmp_path: Path
) -> None:
    database = tmp_path / "runtap.db"
    setting = WorkerSetting(kafka, topic_prefix, f"sqlite:///{database}")
    topic = await events_topic()
    done = await asyncio.to_thread(run_service, setting, model_port)
    worker = await asyncio.to_thread(setting.run, "worker", "--drain")
    assert worker.returncode == 0, worker.stderr
    found = [*leaks("the service's log", done.stderr), *leaks("the worker's log", worker.stderr)]
    logged = await read_topic(kafka, topic)
    found += leaks("the topic", b"\n".join(encode_event(entry.event) for entry in logged))
    # Every place that failed is there, told by what an error may say of itself.
    ends = {entry.event.name: entry.event for entry in logged if isinstance(entry.event, RunEnded)}
    assert set(done.stdout.split()) <= set(ends), set(done.stdout.split()) - set(ends)
    refusal, odd = ends["provider_error"].error, ends["code"].error
    assert refusal is not None
    assert odd is not None
    assert (refusal.category, refusal.status_code, refusal.code) == ("bad_request", 400, "context_length_exceeded")
    assert (odd.status_code, odd.code, odd.message) == (418, None, None)
    assert re.fullmatch(r"__main__\.fail\.<locals>\.step:\d+", odd.raised_at or "")
    stored = await asyncio.to_thread(dump, database)
    assert "context_length_exceeded" in stored
    found += leaks("the store", stored)
    for command in COMMANDS:
        said = await asyncio.to_thread(setting.run, *command)
        assert said.returncode == 0, said.stderr
        found += leaks(" ".join(command), said.stdout + said.stderr)
        if command == ["report"]:
            assert "HTTP 400, context_length_exceeded" in said.stdout
            assert "RUNTAP_ERROR_MESSAGES" in said.stdout
    assert found == []


async def test_messages_are_sent_where_the_service_says_so(
    kafka: str, topic_prefix: str, events_topic: MakeTopic, model_port: int, tmp_path: Path
) -> None:
    setting = WorkerSetting(kafka, topic_prefix, f"sqlite:///{tmp_path / 'runtap.db'}")
    topic = await events_topic()
    await asyncio.to_thread(run_service, setting, model_port, RUNTAP_ERROR_MESSAGES="true")
    ends = [entry.event for entry in await read_topic(kafka, topic) if isinstance(entry.event, RunEnded)]
    errors = {end.name: end.error for end in ends if end.error is not None}
    assert (errors["tool_error"].message, errors["group"].message) == (
        f"no order -1: {SECRET}",
        f"{SECRET} (1 sub-exception)",
    )
    await asyncio.to_thread(setting.drain)
    report = (await asyncio.to_thread(setting.run, "report")).stdout
    assert SECRET in report
    assert "RUNTAP_ERROR_MESSAGES" not in report


def test_what_people_write_is_in_no_spool_either(model_port: int, tmp_path: Path) -> None:
    setting = WorkerSetting("127.0.0.1:1", "unreached", "sqlite://")
    done = run_service(setting, model_port, RUNTAP_SPOOL_DIR=str(tmp_path))
    assert leaks("the log", done.stderr) == []
    (spool,) = tmp_path.rglob("*.spool")
    with contextlib.closing(sqlite3.connect(spool)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        values = [value for name in tables for row in connection.execute(f"SELECT * FROM {name}") for value in row]
    texts = [bytes(cramjam.zstd.decompress(value)) for value in values if isinstance(value, bytes)]
    assert b"context_length_exceeded" in b"".join(texts)
    assert leaks("the spool", b"".join([*texts, str(values).encode()])) == []
