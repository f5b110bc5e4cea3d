"""Recorded answers of real providers, answered over loopback to the real client libraries."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI

from captured_events import Captured
from runtap_schemas import RunEnded, Usage

_FOLDER = os.environ.get("RUNTAP_RECORDINGS")
_FILES = sorted(Path(_FOLDER).glob("*.json")) if _FOLDER else []

pytestmark = [
    pytest.mark.skipif(not _FILES, reason="RUNTAP_RECORDINGS names no folder of recordings"),
    # Of the clients, about models that have been retired since, and about tools that the request does not name.
    pytest.mark.filterwarnings("ignore:The model .* is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Received unexpected tool content block:UserWarning"),
]


class _Replay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        response = _read(Path(_FOLDER or "") / f"{self.path.split('/')[1]}.json")["response"]
        body = base64.b64decode(response["base64"]) if "base64" in response else response["text"].encode()
        self.send_response(response["status"])
        self.send_header("Content-Type", response["content_type"])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture(scope="module")
def replay_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Replay)
    thread = threading.Thread(target=server.serve_forever, name="replay")
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def _read(file: Path) -> dict[str, Any]:
    recording: dict[str, Any] = json.loads(file.read_text())
    return recording


def _model(recording: dict[str, Any], url: str) -> BaseChatModel:
    model = recording["truth"]["request_model"]
    if recording["kind"] == "anthropic.messages":
        return ChatAnthropic(model=model, base_url=url, api_key="none", max_retries=0)  # type: ignore[call-arg, arg-type]
    return ChatOpenAI(
        model=model,
        base_url=f"{url}/v1",
        api_key="none",  # type: ignore[arg-type]
        max_retries=0,
        use_responses_api=recording["kind"] == "openai.responses",
    )


def _replayed(recording: dict[str, Any], url: str) -> RunEnded:
    captured = Captured()
    model = _model(recording, url)
    config: Any = {"callbacks": [captured.handler]}
    try:
        if recording["truth"]["streaming"]:
            for _ in model.stream("hello", config):
                pass
        else:
            model.invoke("hello", config)
    except (openai.APIError, anthropic.APIError):
        assert recording["response"]["status"] != 200
    (run,) = captured.ended()
    return run


@pytest.mark.parametrize("file", _FILES, ids=lambda file: file.stem)
def test_recorded_answer_gives_its_status_model_and_tokens(file: Path, replay_url: str) -> None:
    recording = _read(file)
    truth = recording["truth"]
    run = _replayed(recording, f"{replay_url}/{file.stem}")
    usage = run.usage or Usage()
    writes = [usage.cache_write_5m_tokens, usage.cache_write_1h_tokens]
    got = {
        "status": run.status,
        "request_model": run.request_model,
        "model": run.model,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cache_read_tokens,
        "cache_write_tokens": None if writes == [None, None] else sum(tokens or 0 for tokens in writes),
        "reasoning_tokens": usage.reasoning_tokens,
        "is_metered": run.usage_source in ("response", "stream"),
        "finish_reason": run.finish_reason,
        "service_tier": run.service_tier,
    }
    is_ok = recording["response"]["status"] == 200
    is_streamed_anthropic = truth["streaming"] and recording["kind"] == "anthropic.messages"
    assert got == {
        "status": "ok" if is_ok else "error",
        "request_model": truth["request_model"],
        "model": truth["response_model"] or truth["request_model"],
        **{name: truth[name] for name in ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens")},
        "reasoning_tokens": truth["reasoning_tokens"],
        "is_metered": truth["input_tokens"] is not None,
        "finish_reason": next(iter(truth["finish_reasons"]), None),
        # langchain-anthropic does not hand on a stream's tier.
        "service_tier": None if is_streamed_anthropic else truth["service_tier"],
    }
    if not is_ok:
        assert run.error is not None
        assert (run.error.type, run.error.category) == ("OpenAIAuthenticationError", "auth")
