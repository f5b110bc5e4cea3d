"""No text of a record drives the terminal that a command prints to, or hides there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import unicodedata
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from runtap_consumers.cli import app
from runtap_consumers.evaluate.datasets import make_example, save_version
from runtap_consumers.evaluate.experiments import ExampleResult, begin_experiment, save_result
from runtap_consumers.kafka.topics import create_topics
from runtap_consumers.store import tables
from runtap_consumers.store.engine import Store, open_store
from runtap_consumers.store.writer import Writer
from runtap_schemas import (
    ConnectionSettings,
    LaneAbandoned,
    RunStreamed,
    SkippedRange,
    encode_alert,
    encode_event,
)
from samples import SECOND_NS, alert_row, an_alert, chain_end, failure, framed, model_call, report, session_start
from worker_process import WorkerSetting, produce

# Clears the screen in two ways, beeps, reverses, joins, breaks lines, and is nothing that can be seen.
HIDDEN = "[red]\x1b[2J\x9b\x07\x7f\u202e\u2066\u200b\u2028\ufeff\u3164\ue000"
# Cells of names are cut.
SHOWN = r"[red]\x1b[2J\x9b\x07\x7f\u202e\u2066"
HIDDEN_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
# What no command may need to be here for: it prints what the operator gave, or what is fixed.
PRINTING_NOTHING_STORED = {
    ("topics", "create"),
    ("store", "migrate"),
    ("forward", "langsmith"),
    ("ledger", "forget"),
    ("alerts", "init"),
    ("dead-letters", "skip"),
    *(("prices", name) for name in ("check", "show", "update")),
    *(("dataset", name) for name in ("create", "import", "remove-user")),
    # What it serves is JSON, and no terminal's.
    *((name,) for name in ("demo", "dev", "kafka", "serve")),
}
ENDING = [
    ("report",),
    ("costs", "--by", "team"),
    ("runs", "--csv"),
    ("trace", "run"),
    ("trace", "run", "--json"),
    ("session", f"session_id{HIDDEN}"),
    ("runs", "--wide"),
    ("costs", "--by", "user", "--by", "model"),
    ("report", "--json", "-"),
    ("runs",),
    ("runs", "--json"),
    ("sessions",),
    ("sessions", "--json"),
    ("ledger",),
    ("ledger", "--json"),
    ("dead-letters", "list"),
    ("dead-letters", "list", "--json"),
    ("dead-letters", "show", "0/8"),
    ("dead-letters", "export", "-"),
    ("prices", "unmatched"),
    ("prices", "unmatched", "--json"),
    ("reprice", "--from", "1d", "--dry-run"),
    ("rebuild", "cost", "--dry-run"),
    ("doctor",),
    ("alerts", "list"),
    ("alerts", "list", "--json"),
    ("alerts", "show", "error_rate"),
    ("alerts", "check"),
    ("alerts", "backtest", "--from", "1d"),
    ("worker", "--drain"),
    ("dataset", "list"),
    ("dataset", "show", "questions"),
    ("dataset", "show", "questions", "--json"),
    ("dataset", "export", "questions"),
    ("experiments", "list"),
    ("experiments", "list", "--json"),
    ("experiments", "show", "answers-1"),
    ("experiments", "show", "answers-1", "--json"),
    ("experiments", "compare", "answers-1", "answers-1"),
    # Last: it makes one experiment more. What a target raises may be a hostile question.
    ("evaluate", "questions", "--target", "builtins:repr", "--evaluators", "exact_match"),
]
ENDLESS = [("tail",), ("tail", "--json"), ("tail", "--tokens"), ("alerts", "tail"), ("alerts", "tail", "--json")]
# They name tables, days and counts alone.
WITHOUT_TEXTS_OF_RECORDS = {"evaluate", "rebuild", "worker", "doctor", "alerts check", "alerts backtest"}


def hostile(name: str) -> str:
    return f"{name}{HIDDEN}"


def values(now_ns: int) -> list[bytes]:
    """Every text of the contract that any command prints, some of it raw."""
    who = {name: hostile(name) for name in ("service", "environment", "name", "session_id", "user_id", "trace_id")}
    models = {name: hostile(name) for name in ("provider", "model", "request_model")}
    call = model_call(now_ns, **who, **models, run_id=hostile("run"), metadata={"team": hostile("team")})
    error = failure()
    error = type(error)(
        type=hostile("Type"), category="tool", message=hostile("message"), fingerprint="f1", origin=True
    )
    failed = chain_end(now_ns, **{**who, "run_id": hostile("chain")}, status="error", error=error)
    facts = {name: getattr(failed, name) for name in ("at_ns", "run_id", "service", "environment", "run_type", "name")}
    streamed = RunStreamed(**facts, trace_id="t", index=0, text=f"{hostile('text')}\nend")
    started = session_start(now_ns, hostile("session"))
    said = {
        "service": who["service"],
        "host": hostile("host"),
        "dropped": {hostile("reason"): {"run.started": 3}},
        "skipped": [SkippedRange(first=4, last=4, reason="why\x1b[2J\x9b\u202e")],
    }
    # Two processes under one emitter.
    reports = [report(now_ns + pid, **said, process_id=pid) for pid in (1, 2)]
    abandoned = LaneAbandoned(at_ns=now_ns, emitter=hostile("emitter"), first=1, last=2, reason="old\x1b[2J\u202e")
    events = [call, failed, started, streamed, *reports, abandoned]
    # What is not looked into may hold bytes that are no UTF-8, such as a bare CSI.
    foreign = json.dumps({"type": hostile("type")}, ensure_ascii=False).encode()[:-1] + b',"more":"\x9b2J"}'
    wrong = json.dumps({**json.loads(encode_event(call)), "status": hostile("status")}, ensure_ascii=False).encode()
    bodies = [*map(encode_event, events), foreign, wrong]
    return [framed([body], "e1", number if number < 4 else number + 1) for number, body in enumerate(bodies, start=1)]


@pytest.fixture(scope="module")
def filled(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> WorkerSetting:
    """A log of hostile records, the store that a worker made of it, and a hostile alert in both."""
    prefix, now_ns = f"test-{uuid.uuid4().hex[:12]}", time.time_ns() - 60 * SECOND_NS
    url = f"sqlite:///{tmp_path_factory.mktemp('hostile') / 'runtap.db'}"
    setting = WorkerSetting(kafka, prefix, url, {"RUNTAP_COST_BY": "metadata.team", "COLUMNS": "250"})
    connection = ConnectionSettings.load(bootstrap_servers=kafka, topic_prefix=prefix)
    asyncio.run(create_topics(connection, 1, replication_factor=1))
    asyncio.run(produce(kafka, f"{prefix}.events", [(0, value, []) for value in values(now_ns)]))
    hostile_facts = {name: hostile(name) for name in ("trace_id", "error_type", "error_place", "summary", "query")}
    alert = an_alert(**hostile_facts, group={"service": hostile("service")}, sample_run_ids=[hostile("run_id")])
    asyncio.run(produce(kafka, f"{prefix}.alerts", [(0, encode_alert(alert), [])]))
    setting.drain()
    store = open_store(url)
    with store.engine.begin() as opened:
        opened.execute(tables.alert_outbox.insert().values(**alert_row(alert, now_ns)))
    evaluated(store)
    store.close()
    return setting


def evaluated(store: Store) -> None:
    """Datasets and an experiment of hostile questions, names and errors."""
    asked = {"question": hostile("question"), hostile("field"): 1}
    example = make_example(asked, {"answer": hostile("answer")}, {"session_id": hostile("s"), "user_id": hostile("u")})
    for name in ("questions", hostile("dataset")):
        save_version(store, name, hostile("file"), [example])
    begin_experiment(store, "answers", "questions", 1, hostile("target"), "[]", 1, None)
    scores, models = (json.dumps(each) for each in ({hostile("key"): 1.0}, [hostile("model")]))
    answer = ExampleResult(example.id, 1, hostile("s"), hostile("run"), scores, hostile("error"), models, 1, 1, 1, 1, 1)
    with Writer.of(store) as writer:
        save_result(writer, "answers-1", answer)


def printed(setting: WorkerSetting, arguments: tuple[str, ...], folder: Path, **variables: str) -> tuple[str, str]:
    """Standard output and error of a command, the styles of rich taken away."""
    environment = {**setting.environment(), **variables}
    if arguments[0] == "worker":
        environment["RUNTAP_DATABASE_URL"] = f"sqlite:///{folder / 'another.db'}"
    if arguments[0] == "reprice":
        own = folder / "prices.toml"
        price = f'provider = {json.dumps(hostile("provider"))}\nmodel = "model*"\ninput = "1"\noutput = "1"\n'
        own.write_text(f"[[price]]\n{price}")
        environment["RUNTAP_PRICES"] = str(own)
    if arguments in ENDLESS:
        arguments = (*arguments, "--from-beginning")
    with subprocess.Popen(
        setting.command(*arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        if "--from-beginning" in arguments:
            assert process.stdout is not None
            # The last record of each stream: an alert, the end of a streamed text, a record that cannot be read.
            wanted = b"summary" if arguments[0] == "alerts" else b"\nend" if "--tokens" in arguments else b"unreadable"
            found = b""
            while wanted not in found and (read := os.read(process.stdout.fileno(), 65_536)):
                found += read
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=30)
            found += rest
        else:
            found, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    return re.sub(r"\x1b\[[0-9;]*m", "", found.decode()), re.sub(r"\x1b\[[0-9;]*m", "", errors.decode())


def hidden_in(text: str) -> set[str]:
    return {
        letter
        for letter in text
        if letter != "\n" and (unicodedata.category(letter) in HIDDEN_CATEGORIES or letter == "\u3164")
    }


@pytest.mark.parametrize("arguments", [*ENDING, *ENDLESS], ids=" ".join)
def test_no_command_lets_a_text_drive_the_terminal(
    filled: WorkerSetting, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    found, errors = printed(filled, arguments, tmp_path)
    assert hidden_in(found + errors) == set()
    if "--json" in arguments or arguments[1:2] == ("export",):
        is_one = arguments[0] in ("report", "ledger", "trace") or arguments[:2] == ("experiments", "show")
        lines = [found] if is_one else found.splitlines()
        # The values are what was sent, to the last character; of what could not be read the cause quotes it.
        wanted = SHOWN if arguments[0] == "dead-letters" else HIDDEN
        assert any(wanted in text for text in map(str, strings_of([json.loads(line) for line in lines])))
    elif not {arguments[0], " ".join(arguments[:2])} & WITHOUT_TEXTS_OF_RECORDS:
        assert SHOWN in found, found


def strings_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for one in value:
            yield from strings_of(one)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("arguments", [*ENDING[:3], ("runs",), ("ledger",), ("dead-letters", "list")], ids=" ".join)
def test_nor_on_a_narrow_terminal_with_colours(
    filled: WorkerSetting, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    found, errors = printed(filled, arguments, tmp_path, COLUMNS="80", FORCE_COLOR="1", TERM="xterm-256color")
    assert hidden_in(found + errors) == set()
    assert "[red]" in found


GROUPS = ("alerts", "dataset", "dead-letters", "experiments", "prices")


def test_every_command_is_looked_at() -> None:
    seen = {command[:2] if command[0] in GROUPS else command[:1] for command in ENDING}
    seen |= {command[: 2 if command[0] == "alerts" else 1] for command in ENDLESS}
    assert set(commands_of(typer.main.get_command(app))) == seen | PRINTING_NOTHING_STORED


def commands_of(command: Any, *path: str) -> Iterator[tuple[str, ...]]:
    if not hasattr(command, "list_commands"):
        yield path
        return
    if path and command.invoke_without_command:
        yield path
    context = typer.Context(command)
    for name in command.list_commands(context):
        yield from commands_of(command.get_command(context, name), *path, name)


def test_raw_values_are_not_exported_to_a_terminal(filled: WorkerSetting) -> None:
    leader, terminal = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "runtap_consumers", "dead-letters", "export", "-", "--format", "raw"],
            env=filled.environment(),
            stdout=terminal,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(leader)
        os.close(terminal)
    assert done.returncode == 2
    assert b"name a file" in done.stderr
