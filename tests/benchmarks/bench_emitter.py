"""What a tapped app pays: CPU an invocation, runtap beside four peers with their real exporters, in six modes.

Every figure is a fresh process's, rounds are interleaved, "added" is above the same workload without any handler, all
threads and the flush included: in turns within the process, or beside a bare process of the same round where an
instrumentation is in every run. The peers send to a sink on the loopback, runtap to real Kafka.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from statistics import median
from typing import Any

from emitter_modes import MODES, PEERS, TOKENS, VARIANTS
from measurement import print_machine, spread
from rich.console import Console
from rich.table import Table

from runtap_consumers.kafka.topics import create_topics
from runtap_consumers.settings import ConsumerSettings
from runtap_demo.kafka.broker import EmbeddedKafka

# Long enough that the clock's and the machine's noise is small beside what is measured.
_INVOCATIONS = {"a": 2_000, "b": 5_000, "c": 200, "d": 200, "e": 1_000, "p": 2_000}
_PEER_INVOCATIONS = {"a": 500, "b": 1_000, "c": 100, "d": 100, "e": 300, "p": 1_000}
_TITLES = {
    "a": "sync invoke, 3 steps",
    "b": "100 x ainvoke",
    "c": f"astream, {TOKENS} chunks",
    "d": "LangGraph agent, 3 tools",
    "e": "50 kB in, 10 kB out",
    "p": "sync invoke, 3 steps, 200 a second",
}
_PACKAGES = (
    "runtap", "langchain-core", "langgraph", "aiokafka", "langsmith", "langfuse",
    "openinference-instrumentation-langchain", "opentelemetry-instrumentation-langchain",
)  # fmt: skip


class Sink(BaseHTTPRequestHandler):
    """Takes everything that a peer exports."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer(b"{}")

    do_PATCH = do_PUT = do_POST  # noqa: N815

    def do_GET(self) -> None:
        limits = {"size_limit": 100, "size_limit_bytes": 20_971_520, "scale_up_qsize_trigger": 1_000}
        limits |= {"scale_up_nthreads_limit": 16, "scale_down_nempty_trigger": 4, "use_multipart_endpoint": True}
        self._answer(json.dumps({"version": "1", "batch_ingest_config": limits}).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


def measure(mode: str, variant: str, environment: dict[str, str]) -> dict[str, float]:
    """What one fresh process measures."""
    invocations = (_PEER_INVOCATIONS if variant in PEERS else _INVOCATIONS)[mode]
    command = [sys.executable, str(Path(__file__).with_name("emitter_modes.py")), mode, variant, str(invocations)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise SystemExit(f"{mode} {variant} failed:\n{done.stderr[-3_000:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def print_mode(console: Console, mode: str, rounds: list[dict[str, dict[str, float]]]) -> None:
    """A table a mode: medians over the rounds, and in brackets minimum and maximum."""
    events = int(rounds[0]["none"]["events"])
    names = list(rounds[0])
    added = {name: [_added(one, name) * 1e6 for one in rounds] for name in names}
    peers = [name for name in PEERS if name in names]
    cheapest = min(peers, key=lambda name: median(added[name]), default=None)
    table = Table(title=f"{mode}: {_TITLES[mode]}, {events} events", title_justify="left", box=None)
    for heading in (
        "",
        "added µs an invocation",
        "above the floor µs an event",
        "share of the cheapest peer",
        "p99 ms",
    ):
        table.add_column(heading, justify="left" if not heading else "right")
    for name in names:
        share = ""
        if cheapest and name != "none":
            share = spread([one / peer for one, peer in zip(added[name], added[cheapest], strict=True)], ".3f")
        above = ""
        if "floor" in added and name not in ("none", "floor"):
            above = spread([(one - low) / events for one, low in zip(added[name], added["floor"], strict=True)], ",.1f")
        p99 = spread([one[name]["p99"] * 1e3 for one in rounds]) if mode in "ap" else ""
        table.add_row(name, "" if name == "none" else spread(added[name], ",.0f"), above, share, p99)
    console.print(table)
    if mode == "c" and "floor" in added:
        for name in ("runtap", "runtap-content"):
            if name in added:
                # LangChain parses chunks in threads of its own, whose milliseconds vary by more than a token costs.
                tokens = [(one[name]["main"] - one["floor"]["main"]) * 1e6 / TOKENS for one in rounds]
                console.print(f"{name}: {spread(tokens)} µs a token above the floor, in the loop's thread")
    console.print()


def _added(measured: dict[str, dict[str, float]], name: str) -> float:
    """Seconds that a variant added to an invocation."""
    one, bare = measured[name], measured["none"]
    if one["is_added"]:
        # LangChain's own threads were at work in both of its turns.
        return one["main"] + one["others"] - 2 * bare["others"]
    return one["main"] + one["others"] - bare["main"] - bare["others"]


def main() -> None:
    """Measures the modes one after the other."""
    parser = argparse.ArgumentParser(description="CPU that tapping adds, beside its peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--modes", default="".join(MODES))
    parser.add_argument("--variants", default=",".join(VARIANTS))
    arguments = parser.parse_args()
    console = Console(highlight=False, width=170)
    try:
        print_machine(console, *_PACKAGES)
    except PackageNotFoundError:
        print_machine(console, *_PACKAGES[:4])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    variants = arguments.variants.split(",")
    with EmbeddedKafka() as kafka, tempfile.TemporaryDirectory(prefix="runtap-bench-") as spool:
        settings = ConsumerSettings.load(bootstrap_servers=kafka.bootstrap_servers, topic_prefix="bench")
        asyncio.run(create_topics(settings, partitions=6, replication_factor=1))
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RUNTAP_", "LANG"))},
            "RUNTAP_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "RUNTAP_TOPIC_PREFIX": "bench",
            "SPOOL": spool,
            "SINK": f"http://127.0.0.1:{server.server_address[1]}",
        }
        for mode in arguments.modes:
            rounds = []
            for number in range(arguments.rounds):
                # Each comes first and last about equally often.
                turned = [variants[(place + number) % len(variants)] for place in range(len(variants))]
                measured = {variant: measure(mode, variant, environment) for variant in turned}
                rounds.append({variant: measured[variant] for variant in variants})
            print_mode(console, mode, rounds)
    server.shutdown()


if __name__ == "__main__":
    main()
