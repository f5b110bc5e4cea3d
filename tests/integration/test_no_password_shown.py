"""A password that stands in a setting, right or wrong, appears nowhere: not in messages, log lines or tracebacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from runtap_collector import CollectorSettings, RunTap, SettingsError
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import shown_url
from runtap_schemas.masking import shown, without_passwords

# In two halves, since what splits a password shows a part of it.
PASSWORDS = ("PLANTED", "PLANTED%2FPLANTED", *(f"PLANTED{mark}PLANTED" for mark in "/:?#&,= %@"))
DATABASE_URLS = [
    "postgresql://u:{}@127.0.0.1:1/db",
    "postgresql://u:x@127.0.0.1:1/db?password={}",
    "postgresql://u@127.0.0.1:1/db?sslmode=odd&password={}",
    "postgresql://u@127.0.0.1:1/db?password={}&nothing=such",
    "postgresql://u@127.0.0.1:1/db?password={}&password=x",
    "postgresql://u:{}@127.0.0.1:port/db",
    "postgresql://u:{}@[::1/db",
    "postgresql://u:{}/db",
    "postgresql://u/x:{}@127.0.0.1:1/db",
    "postgresql://u:{} 127.0.0.1/db",
    "postgresql+nothing://u:{}@127.0.0.1:1/db",
    "postgres://u:{}@127.0.0.1/db",
    "postgresql:/u:{}@127.0.0.1/db",
    "postgresql:u:{}@127.0.0.1/db",
    "postgresql//u:{}@127.0.0.1/db",
    "mysql://u:{}@127.0.0.1/db",
    "jdbc:postgresql://127.0.0.1/db?user=u&password={}",
    "sqlite://u:{}@/x.db",
    "u:{}@127.0.0.1/db",
    "{}@127.0.0.1/db",
    "host=127.0.0.1 user=u password={}",
]
BOOTSTRAP_SERVERS = [
    "u:{}@127.0.0.1:1",
    "127.0.0.1:1,u:{}@127.0.0.1:1",
    "SASL_SSL://u:{}@127.0.0.1:1",
    "SASL_SSL://u:{}:127.0.0.1:1",
    "u:{}@127.0.0.1",
    "{}@127.0.0.1:1",
    "u:{}",
    "u:{} 127.0.0.1:1",
    "127.0.0.1:1?password={}",
]
# Every command line in one process: each as `runtap` runs it, with Python's own words where something is not caught.
RUN_ALL = """
import json, os, sys, traceback
from runtap_consumers import cli

for variables, arguments in json.load(sys.stdin):
    os.environ.update(variables)
    sys.argv[1:] = arguments
    try:
        cli.run()
    except SystemExit as end:
        print("exit", end.code)
    except BaseException:
        traceback.print_exc()
        print("uncaught")
    for name in variables:
        del os.environ[name]
"""


def is_shown(text: str) -> bool:
    return "planted" in text.lower()


def run_all(cases: list[tuple[dict[str, str], list[str]]], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNTAP_")}
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=json.dumps(cases),
        env={**environment, "NO_COLOR": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert "Traceback" not in done.stderr, done.stderr[done.stderr.index("Traceback") :][:4_000]
    assert done.stdout.count("exit") == len(cases)
    return done.stdout + done.stderr


def test_no_command_shows_the_password_of_a_wrong_store(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, str], list[str]]] = []
    for url in DATABASE_URLS:
        cases += [({"RUNTAP_DATABASE_URL": url.format(password)}, ["report"]) for password in PASSWORDS[:2]]
        option = ["--database-url", url.format("PLANTED"), "--bootstrap-servers", "no-port"]
        cases += [({}, ["worker", *option]), ({}, ["store", "migrate", "--database-url", url.format("PLANTED")])]
    said = run_all(cases, tmp_path)
    assert "RUNTAP_DATABASE_URL" in said
    assert [line for line in said.splitlines() if is_shown(line)] == []


def test_doctor_and_worker_show_no_password_of_a_store_that_is_away(tmp_path: Path) -> None:
    def said_of(url: str) -> str:
        variables = {"RUNTAP_DATABASE_URL": url.format("PLANTED"), "RUNTAP_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
        return run_all([(variables, ["doctor"]), (variables, ["worker", "--drain"])], tmp_path)

    # Each worker waits for half a minute.
    with ThreadPoolExecutor() as threads:
        for said in threads.map(said_of, [DATABASE_URLS[0], DATABASE_URLS[1], DATABASE_URLS[10]]):
            assert "postgresql" in said
            assert not is_shown(said), said


def test_no_command_shows_the_password_in_bootstrap_servers(tmp_path: Path) -> None:
    cases = [
        ({"RUNTAP_BOOTSTRAP_SERVERS": servers.format(password)}, command)
        for servers in BOOTSTRAP_SERVERS
        for password in PASSWORDS[:2]
        for command in (["doctor"], ["worker"], ["report"], ["topics", "create"], ["topics", "create", "--print"])
    ]
    said = run_all(cases, tmp_path)
    assert said.count("exit 2") == len(cases)
    assert [line for line in said.splitlines() if is_shown(line)] == []


@pytest.mark.parametrize("servers", BOOTSTRAP_SERVERS)
def test_no_traceback_of_a_service_shows_it(servers: str) -> None:
    for password in PASSWORDS:
        with pytest.raises(SettingsError) as caught:
            RunTap.from_env(bootstrap_servers=servers.format(password))
        assert not is_shown("".join(traceback.format_exception(caught.value)))


def test_no_traceback_shows_a_misspelt_setting_or_a_store() -> None:
    with pytest.raises(SettingsError) as misspelt:
        CollectorSettings.load(sasl_pasword=PASSWORDS[0])
    assert "RUNTAP_SASL_PASWORD" in str(misspelt.value)
    assert not is_shown("".join(traceback.format_exception(misspelt.value)))
    for url, password in product(DATABASE_URLS, PASSWORDS):
        if "@" in password and "@" not in url:
            # What follows it is a host, for whoever reads it.
            continue
        said = ""
        try:
            settings = ConsumerSettings.load(database_url=url.format(password))
            said = f"{settings!r} {shown_url(make_url(settings.database_url))}"
        except SettingsError as error:
            said = "".join(traceback.format_exception(error))
        assert said
        assert not is_shown(said)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot open postgresql://u:p@h/db: refused", "cannot open postgresql://***@h/db: refused"),
        ("amqp://u:p@ss@h and u:p@h", "amqp://***@h and ***@h"),
        ("host=h password=p port=1", "host=h password=*** port=1"),
        ("expected postgresql://user:password@host/database", "expected postgresql://user:password@host/database"),
        ("mail a@b.c at 10:30, RUNTAP_SASL_PASSWORD: missing", "mail a@b.c at 10:30, RUNTAP_SASL_PASSWORD: missing"),
    ],
)
def test_other_libraries_texts_keep_all_but_the_password(text: str, expected: str) -> None:
    assert without_passwords(text) == expected


@pytest.mark.parametrize(
    "value", ["kafka-1", "kafka-1:9092,kafka-2", "sqlite:///x/y.db", "Europe/Nowhere", "kafka:99999", 7]
)
def test_harmless_values_are_shown_whole(value: object) -> None:
    assert shown(value) == repr(value)
