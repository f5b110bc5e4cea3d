"""docker-compose.yml says nothing that runtap does not understand. Its commands run for real in an integration test."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.main import get_command

from runtap_consumers.alerts.rule_file import default_text, find_rules, parse_rules
from runtap_consumers.cli import app
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.settings import ConsumerSettings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
WORKERS = {name: service for name, service in OURS.items() if service["command"][0] == "worker"}


def parse(words: list[str]) -> list[str]:
    """Parses a command line down to the command that would run, which is not run. Returns its names."""
    command: Any = get_command(app)
    names: list[str] = []
    context: Any = None
    while True:
        context = command.make_context(command.name, list(words), parent=context)
        if not hasattr(command, "resolve_command"):
            return names
        # What a group did not take for itself is the name of a command, and its arguments.
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
        names.append(name)


@pytest.mark.parametrize("name", sorted(OURS))
def test_command_of_a_service_is_one_that_the_command_line_takes(name: str) -> None:
    assert parse(OURS[name]["command"])[0] == OURS[name]["command"][0]


def test_wrong_command_line_is_noticed() -> None:
    for words in (["worker", "--healthy", "8080"], ["topics", "make"], ["worker", "--drain", "--health"]):
        with pytest.raises(Exception, match=r"No such|requires an argument"):
            parse(words)


def test_command_lines_in_comments_are_ones_that_the_command_line_takes() -> None:
    marker = "docker compose run --rm topics "
    lines = [line.split(marker)[1].split("#")[0] for line in TEXT.splitlines() if marker in line]
    assert len(lines) == 2
    for line in lines:
        assert parse(shlex.split(line))


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_setting_of_a_service_exists_and_its_value_is_accepted(name: str, tmp_path: Path) -> None:
    environment = OURS[name]["environment"]
    ours = {key.removeprefix("RUNTAP_").lower(): value for key, value in environment.items()}
    assert ours.keys() <= ConsumerSettings.model_fields.keys()
    secret = tmp_path / "secret"
    secret.write_text("let-me-in")
    files = {key: str(secret) for key in ours if key.endswith("_file")}
    settings = ConsumerSettings.load(**{**ours, **files, "timezone": "UTC"})
    assert settings.database_url == "postgresql://runtap:let-me-in@postgres/runtap"
    assert settings.bootstrap_servers == "kafka:19092"
    assert environment["RUNTAP_TIMEZONE"] == "${RUNTAP_TIMEZONE:-UTC}"


def test_there_is_a_worker_for_each_projection_and_one_for_alerts_or_one_for_all() -> None:
    named = {name: service["command"][1:-2] for name, service in WORKERS.items()}
    assert named == {**{name: [name] for name in (*PROJECTIONS, "alerts", "notify")}, "all": []}
    # Who names no service gets those, and who names `all`, `notify` and `grafana` gets what these need.
    assert [name for name, service in SERVICES.items() if "profiles" in service] == ["all"]
    needed = {"all", "notify", "grafana"}
    while more := {one for name in needed for one in SERVICES[name].get("depends_on", [])} - needed:
        needed |= more
    assert needed == SERVICES.keys() - {*PROJECTIONS, "alerts"}


def test_rules_are_the_built_in_ones_and_alerts_go_to_alertmanager() -> None:
    file = find_rules(str(ROOT / "deploy" / "runtap" / "alerts.toml"), ())
    assert file.rules == parse_rules(default_text(), "built in", ()).rules
    assert [(channel.url, channel.allow_private) for channel in file.channels] == [("http://alertmanager:9093", True)]


def test_a_new_store_is_there_before_whoever_needs_it() -> None:
    for name, service in OURS.items():
        if name not in ("topics", "migrate"):
            assert service["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


def test_workers_can_be_scaled() -> None:
    for service in WORKERS.values():
        assert "container_name" not in service
        assert "ports" not in service
        assert service["depends_on"]["topics"] == {"condition": "service_completed_successfully"}
        # Of the container, so that Prometheus reaches it.
        assert service["command"][-2:] == ["--health", "0.0.0.0:8080"]
        assert ":8080/readyz" in service["healthcheck"]["test"][-1]


def test_every_service_has_a_tag_a_limit_of_memory_and_logs_that_end() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {service["image"] for service in OURS.values()} == {f"runtap-workers:{version}"}
    for name, service in SERVICES.items():
        assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+(\.\d+)?", service["image"]), name
        assert re.fullmatch(r"\d+[mg]", service["mem_limit"]), name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name


def test_secrets_come_by_file_and_nothing_listens_beyond_this_machine() -> None:
    assert COMPOSE["secrets"] == {
        name: {"file": f"secrets/{name}"} for name in ("postgres_password", "serve_token", "grafana_password")
    }
    for name, service in SERVICES.items():
        given = {f"/run/secrets/{secret}" for secret in service.get("secrets", [])}
        named = {value for key, value in service.get("environment", {}).items() if key.endswith("_FILE")}
        assert named == given or name == "prometheus", name
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert {port.rpartition(":")[0] for port in ports} == {f"127.0.0.1:{n}" for n in (9092, 8484, 9090, 9093, 3000)}
    for ignored in (".gitignore", ".dockerignore"):
        assert "secrets" in [line.rstrip("/") for line in (ROOT / ignored).read_text().splitlines()]


def test_every_volume_is_declared_and_every_folder_is_there() -> None:
    volumes = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert {volume for volume in volumes if not volume.startswith("./")} == set(COMPOSE["volumes"])
    assert all((ROOT / volume).is_dir() for volume in volumes if volume.startswith("./"))


def test_image_runs_the_command_line_and_copies_what_the_package_is_built_of() -> None:
    lines = (ROOT / "consumers" / "Dockerfile").read_text().splitlines()
    assert 'ENTRYPOINT ["runtap"]' in lines
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    assert {"pyproject.toml", "README.md", "LICENSE", "schemas", "collector", "consumers", "demo"} <= copied
    command = next(line for line in lines if line.startswith("CMD "))
    assert parse(yaml.safe_load(command.removeprefix("CMD "))) == ["worker"]
    assert isinstance(get_command(app), typer.core.TyperGroup)
