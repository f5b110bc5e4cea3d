"""docker-compose.yml says nothing that runtap does not understand. Its commands run for real in an integration test."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.main import get_command

from runtap_consumers.cli import app
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.settings import ConsumerSettings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "runtap-workers"}
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
def test_every_setting_of_a_service_exists_and_its_value_is_accepted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = OURS[name]["environment"]
    ours = {key.removeprefix("RUNTAP_").lower(): value for key, value in environment.items() if key != "PGPASSWORD"}
    assert ours.keys() <= ConsumerSettings.model_fields.keys()
    settings = ConsumerSettings.load(**{**ours, "timezone": "UTC"})
    assert settings.bootstrap_servers == "kafka:19092"
    assert environment["RUNTAP_TIMEZONE"] == "${RUNTAP_TIMEZONE:-UTC}"


def test_there_is_a_worker_for_each_projection_and_one_for_alerts() -> None:
    assert {name: service["command"][1] for name, service in WORKERS.items()} == {
        name: name for name in (*PROJECTIONS, "alerts")
    }


def test_workers_can_be_scaled() -> None:
    for service in WORKERS.values():
        assert "container_name" not in service
        assert "ports" not in service
        assert service["depends_on"]["topics"] == {"condition": "service_completed_successfully"}
        port = service["command"][service["command"].index("--health") + 1]
        assert f":{port}/readyz" in service["healthcheck"]["test"][-1]


def test_there_is_no_default_password_and_nothing_listens_beyond_this_machine() -> None:
    password = SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"]
    assert password.startswith("${RUNTAP_POSTGRES_PASSWORD:?")
    assert all(service["environment"]["PGPASSWORD"] == password for service in OURS.values())
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:9092:9092"]
    assert {volume.split(":")[0] for name in ("kafka", "postgres") for volume in SERVICES[name]["volumes"]} == set(
        COMPOSE["volumes"]
    )


def test_image_runs_the_command_line_and_copies_what_the_package_is_built_of() -> None:
    lines = (ROOT / "consumers" / "Dockerfile").read_text().splitlines()
    assert 'ENTRYPOINT ["runtap"]' in lines
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    assert {"pyproject.toml", "README.md", "LICENSE", "schemas", "collector", "consumers", "demo"} <= copied
    command = next(line for line in lines if line.startswith("CMD "))
    assert parse(yaml.safe_load(command.removeprefix("CMD "))) == ["worker"]
    assert isinstance(get_command(app), typer.core.TyperGroup)
