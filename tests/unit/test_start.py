"""What is loaded at a start: a library that is not needed yet costs everybody who starts a tenth of a second."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_PRINT_MODULES = "import json, sys; print(); print(json.dumps(sorted(sys.modules)))"
_NOT_FOR_HELP = {"alembic", "genai_prices", "httpx2", "numpy", "psycopg", "sqlalchemy", "structlog", "aiokafka"}


def _loaded_by(code: str) -> set[str]:
    """The modules that a fresh process has loaded after this code."""
    command = [sys.executable, "-c", f"{code}\n{_PRINT_MODULES}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_of_the_collector_loads_neither_kafka_client_nor_spool() -> None:
    loaded = _loaded_by("from runtap_collector import CollectorSettings, RunTap, RunTapHandler, install")
    assert "runtap_collector.capture.handler" in loaded
    assert not loaded & {"aiokafka", "cramjam", "sqlite3", "structlog", "runtap_collector.send.emitter"}


_CALL_BACK = """
import sys
from uuid import uuid4
from runtap_collector import RunTap, RunTapHandler, install
handler = {handler}
before = set(sys.modules)
run_id = uuid4()
handler.on_chain_start({{}}, {{}}, run_id=run_id)
handler.on_chain_end({{}}, run_id=run_id)
late = {{name for name in set(sys.modules) - before if name.partition(".")[0] in {packages}}}
assert not late, late
"""


@pytest.mark.parametrize(
    "handler", ["RunTap.from_env().handler", "install()._hook.handler", "RunTapHandler()"], ids=["tap", "hook", "none"]
)
def test_first_callback_waits_for_no_import(handler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing listens there, and nothing may be written.
    monkeypatch.setenv("RUNTAP_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("RUNTAP_SPOOL_DIR", "off")
    packages = ("aiokafka", "cramjam", "sqlite3", "runtap_collector", "runtap_schemas")
    assert {*packages} <= _loaded_by(_CALL_BACK.format(handler=handler, packages=packages))


def test_help_of_a_command_loads_only_what_it_shows() -> None:
    loaded = _loaded_by(
        "import sys; sys.argv = ['runtap', 'report', '--help']\n"
        "from runtap_consumers.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass"
    )
    assert "runtap_consumers.cli.look" in loaded
    assert not loaded & _NOT_FOR_HELP


def test_a_worker_loads_no_numpy() -> None:
    loaded = _loaded_by("import runtap_consumers.worker.process")
    assert "runtap_consumers.projections.sketch" in loaded
    assert "numpy" not in loaded
