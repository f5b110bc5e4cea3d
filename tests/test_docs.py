"""What the documents say exists, and what exists is documented."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined
from typer import Context
from typer.main import get_command

from runtap_collector import CollectorSettings, Delivery, EmitterHealth, Stats
from runtap_consumers.cli import app
from runtap_consumers.serve.openapi import make_document
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.worker.health import Health
from runtap_schemas import Settings

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "schemas": "runtap_schemas",
    "collector": "runtap_collector",
    "consumers": "runtap_consumers",
    "demo": "runtap_demo",
}
# What examples call an object of a class.
ALIASES = {"tap": "tap.RunTap"}
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / folder / "README.md" for folder in PACKAGES),
]


def text_of(path: str) -> str:
    return (ROOT / path).read_text()


def test_the_document_of_the_api_is_made_from_its_types() -> None:
    how = "run `python -m runtap_consumers.serve.openapi > docs/openapi.json`"
    assert json.loads(text_of("docs/openapi.json")) == make_document(), how


@pytest.mark.parametrize("settings", [CollectorSettings, ConsumerSettings])
def test_every_setting_is_documented_with_its_default(settings: type[Settings]) -> None:
    document = text_of("docs/settings.md")
    for name, field in settings.model_fields.items():
        (row,) = re.findall(rf"^\| `RUNTAP_{name.upper()}` \|.*$", document, re.MULTILINE)
        _, _, default, description, _ = (cell.strip() for cell in row.split("|"))
        value: Any = field.default_factory() if field.default is PydanticUndefined else field.default  # type: ignore[call-arg, misc]
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        assert default == ("" if value in (None, "", {}) else f"`{shown}`"), name
        assert description == field.description


def test_no_setting_is_documented_that_does_not_exist() -> None:
    known = {f"RUNTAP_{name.upper()}" for kind in (CollectorSettings, ConsumerSettings) for name in kind.model_fields}
    of_tests_and_demo = {"RUNTAP_KAFKA_CACHE", "RUNTAP_RECORDINGS", "RUNTAP_DATA", "RUNTAP_TEST_POSTGRES_URL"}
    for document in DOCUMENTS:
        named = set(re.findall(r"RUNTAP_[A-Z_]*[A-Z]", document.read_text()))
        assert named <= known | of_tests_and_demo, document


@pytest.mark.parametrize("counters", [Stats, Delivery, EmitterHealth, Health])
def test_every_counter_is_documented(counters: Any) -> None:
    document = text_of("consumers/README.md" if counters is Health else "collector/README.md")
    for field in dataclasses.fields(counters):
        assert f"`{field.name}`" in document, field.name


@pytest.mark.parametrize("folder", ["collector", "consumers", "demo"])
def test_functions_that_a_readme_names_exist(folder: str) -> None:
    """`module.Class.method` and `module.function` in a package's README, relative to the package."""
    named = re.findall(r"`((?:[a-z_]+\.)+[A-Za-z_][A-Za-z_.]*)`", text_of(f"{folder}/README.md"))
    paths = [
        ALIASES.get(path.split(".")[0], path.split(".")[0]) + path[len(path.split(".")[0]) :]
        for path in named
        if is_ours(path)
    ]
    # Lines of a table of the way: what is called, and in which file.
    paths += [
        f"{module.replace('/', '.')}.{called}"
        for called, module in re.findall(r"\b([A-Z]\w+\.\w+) +([\w/]+)\.py", text_of(f"{folder}/README.md"))
    ]
    assert len(paths) >= 5
    for path in paths:
        assert resolve(PACKAGES[folder], path), path


def is_ours(path: str) -> bool:
    """Whether the first part of a dotted name is one of our packages, or a module of one."""
    first, *_, last = path.split(".")
    return last != "py" and (
        first in PACKAGES.values()
        or any(
            (ROOT / folder / package / f"{first}.py").exists() or (ROOT / folder / package / first).is_dir()
            for folder, package in PACKAGES.items()
        )
    )


def resolve(package: str, path: str) -> bool:
    parts = path.split(".")
    for first in (package, *PACKAGES.values()):
        prefix = [] if parts[0] in PACKAGES.values() else [first]
        for length in range(len(parts), 0, -1):
            try:
                found: Any = importlib.import_module(".".join([*prefix, *parts[:length]]))
            except ModuleNotFoundError:
                continue
            if has_attributes(found, parts[length:]):
                return True
    return False


def has_attributes(found: Any, names: list[str]) -> bool:
    for name in names:
        fields = getattr(found, "__annotations__", {}) if inspect.isclass(found) else {}
        if not hasattr(found, name):
            # An attribute that instances get in __init__ or declare.
            return name in fields or (inspect.isclass(found) and f"self.{name}" in inspect.getsource(found))
        found = getattr(found, name)
    return True


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_project_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_both_readmes_show_the_same_commands() -> None:
    commands = [
        re.findall(r"^    ((?:runtap|make|pip|docker) [a-z'\[].*?)(?:\s{2,}#.*)?$", text_of(name), re.MULTILINE)
        for name in ("README.md", "README.zh-CN.md")
    ]
    assert commands[0] == commands[1]
    assert len(commands[0]) > 10


def test_every_option_that_a_document_names_exists_on_its_command() -> None:
    group = get_command(app)
    named = 0
    for document in DOCUMENTS:
        for line in document.read_text().splitlines():
            is_example = re.match(r" {4}(?:[A-Z_]+=\S+ )*runtap ", line)
            for words in re.findall(r"\bruntap (.*?)(?=\bruntap |$)", line):
                path, options = command_of(group, words)
                assert path or not is_example, line
                for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", words) if path else ():
                    assert option in options, f"{document.name}: runtap {path} {option}"
                    named += 1
    assert named > 40


def command_of(command: Any, words: str) -> tuple[str, set[str]]:
    """The command that words begin with, and its options."""
    context = Context(command)
    path = []
    for word in re.findall(r"[^\s`]+", words):
        found = command.get_command(context, word) if hasattr(command, "get_command") else None
        if found is None:
            break
        command, context = found, Context(found)
        path.append(word)
    return " ".join(path), {name for option in command.get_params(context) for name in option.opts}


def test_nothing_names_this_machine_or_a_registry_host() -> None:
    forbidden = re.compile(r"/work/|/root/|pypi\.org|repo1?\.maven|registry\.npmjs|deb\.debian|files\.pythonhosted")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in tracked.splitlines():
        if name != "tests/test_docs.py" and (ROOT / name).is_file():
            assert not forbidden.search((ROOT / name).read_text(errors="replace")), name
