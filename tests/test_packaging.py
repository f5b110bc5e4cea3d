"""The built wheel does what the README says, in a fresh virtual environment: alone, and then with each extra."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation, hatchling of this environment builds it: no download.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an empty virtual environment. Each test adds an extra to what those before it have."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder)
    return folder / "bin"


def install(commands: Path, wheel: Path, extra: str) -> None:
    target = f"{wheel}[{extra}]" if extra else str(wheel)
    constraints = ROOT / "constraints.txt"
    # Compiled when it is imported, and only what is: half of an installation's time is spent on the rest.
    pip = [sys.executable, "-m", "pip", "--python", str(commands / "python"), "install", "--no-compile"]
    options = ["-q", "--disable-pip-version-check", "-c", str(constraints)]
    subprocess.run([*pip, *options, target], check=True, capture_output=True)


def run(command: list[Path | str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RUNTAP_", "PYTHON"))}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_the_wheel_holds_four_typed_packages_and_their_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("runtap_schemas", "runtap_collector", "runtap_consumers", "runtap_demo"):
        assert f"{package}/py.typed" in names
    assert "runtap_schemas/json/run.ended.json" in names
    assert "runtap_consumers/store/migrations/env.py" in names
    assert "runtap_consumers/pricing/corrections.toml" in names
    assert "runtap_demo/kafka_jars.txt" in names
    page = {name for name in names if name.startswith("runtap_consumers/serve/page/")}
    folder = ROOT / "consumers/runtap_consumers/serve/page"
    assert {f"runtap_consumers/serve/page/{path.relative_to(folder)}" for path in folder.rglob("*.*")} == page
    assert {name.split("/")[0] for name in names if not name.startswith("runtap-")} == {
        "runtap_schemas",
        "runtap_collector",
        "runtap_consumers",
        "runtap_demo",
    }


def test_the_collector_alone_attaches_and_names_missing_extras(commands: Path, wheel: Path, tmp_path: Path) -> None:
    install(commands, wheel, "")
    script = (
        "import sys, runtap_collector\n"
        "from langchain_core.language_models import FakeListChatModel\n"
        "tap = runtap_collector.RunTap.from_env(service='s', bootstrap_servers='127.0.0.1:1')\n"
        "FakeListChatModel(responses=['x']).invoke('q', config={'callbacks': [tap.handler]})\n"
        "print(tap.stats().captured)\n"
        "print([name for name in ('sqlalchemy', 'numpy', 'typer', 'genai_prices') if name in sys.modules])\n"
    )
    done = run([commands / "python", "-c", script], tmp_path)
    assert done.stdout.split("\n")[:2] == ["2", "[]"], done.stderr
    for command, extra in (("report", "workers"), ("worker", "workers"), ("demo", "demo"), ("dev", "demo")):
        done = run([commands / "runtap", command], tmp_path)
        assert done.returncode == 2
        assert f"runtap {command} needs the extra: pip install 'runtap[{extra}]'" in done.stderr


def test_the_workers_extra_reports_and_names_the_demo_extra(commands: Path, wheel: Path, tmp_path: Path) -> None:
    install(commands, wheel, "workers")
    done = run([commands / "runtap", "report"], tmp_path)
    assert done.returncode != 0
    assert "there is no store" in done.stderr
    assert "Traceback" not in done.stderr
    done = run([commands / "runtap", "demo"], tmp_path)
    assert done.returncode == 2
    assert "pip install 'runtap[demo]'" in done.stderr


def test_the_demo_extra_runs_the_demo(commands: Path, wheel: Path, tmp_path: Path) -> None:
    install(commands, wheel, "demo")
    done = run([commands / "runtap", "demo", "--json", "report.json"], tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "report.json").exists()
