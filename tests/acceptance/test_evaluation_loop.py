"""The whole loop: traffic with its content, a dataset of it, two prompts, and the better one wins."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from runtap_consumers.kafka.topics import create_topics
from runtap_demo.kafka.child_processes import end, spawn
from runtap_demo.kafka.ports import free_ports
from runtap_schemas import ConnectionSettings
from worker_process import wait_until

# The second prompt is cut off in the middle of half of its answers.
MODULE = """
import json

from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI


def prompt(words, **options):
    chat = ChatPromptTemplate.from_messages([("system", words), ("human", "{question}")])
    return (lambda inputs: {"question": json.dumps(inputs)[:500]}) | chat | ChatOpenAI(
        model="gpt-4o-mini", max_retries=0, timeout=10, **options
    )


old = prompt("Answer as the assistant of a shop.", max_tokens=90)
new = prompt("Answer as the assistant of a shop, in whole sentences.")


def whole(run):
    return run.error is None and run.outputs["output"].response_metadata["finish_reason"] == "stop"
"""


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/totals", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.mark.timeout(600)
def test_of_two_prompts_over_questions_of_real_traffic_the_better_one_wins(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    (tmp_path / "prompts.py").write_text(MODULE)
    (tmp_path / "prices.toml").write_text('[[seller]]\nhost = "127.0.0.1"\nprovider = "openai"\n')
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RUNTAP_")},
        "RUNTAP_BOOTSTRAP_SERVERS": kafka,
        "RUNTAP_TOPIC_PREFIX": topic_prefix,
        "RUNTAP_DATABASE_URL": f"sqlite:///{tmp_path / 'runtap.db'}",
        "RUNTAP_PRICES": str(tmp_path / "prices.toml"),
        "RUNTAP_SPOOL_DIR": str(tmp_path / "spool"),
        "RUNTAP_CAPTURE_CONTENT": "true",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "OPENAI_API_KEY": "none",
    }

    def run(*arguments: str, code: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode in code, (done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout

    def evaluate(target: str) -> Any:
        what = ("--target", f"prompts:{target}", "--evaluators", "prompts:whole", "--prefix", "answers")
        # The model server refuses some questions however often they come: 1 says so.
        said = run("runtap_consumers", "evaluate", "questions", *what, "--concurrency", "16", "--json", code=(0, 1))
        return json.loads(said)

    asyncio.run(create_topics(ConnectionSettings.load(bootstrap_servers=kafka, topic_prefix=topic_prefix), 3, 1))
    command = [sys.executable, "-m", "runtap_demo.model_server", "--port", str(port), "--seed", "3"]
    server = spawn(command, log=tmp_path / "model.log")
    try:
        wait_until(lambda: _answers(port), what="the model server")
        run("runtap_demo.service", "--seed", "3", "--sessions", "20")
        run("runtap_consumers", "worker", "--drain")
        said = run("runtap_consumers", "dataset", "create", "questions", "--from-runs", "--service", "checkout")
        old, new = evaluate("old"), evaluate("new")
        run("runtap_consumers", "worker", "--drain")
        report = json.loads(run("runtap_consumers", "report", "--json", "-"))
    finally:
        end([server], timeout_seconds=5)
    assert "0 of them without content" in said, said
    (score,) = new["scores"]
    assert (new["against"], score["key"], score["verdict"]) == (old["experiment"], "whole", "higher")
    assert 0 < score["low"] < score["difference"] < score["high"]
    assert score["difference"] > score["least_seen"] > 0
    assert float(new["cost_per_good_answer_usd"]) > 0
    # What the experiments say they cost is what the stream's figures say.
    rows = [row for row in report["cost"]["by_service"] if row["environment"] == "evaluation"]
    assert sum(Decimal(row["cost_usd"]) for row in rows) == Decimal(old["cost_usd"]) + Decimal(new["cost_usd"])
    assert sum(row["unpriced_calls"] for row in rows) == 0
