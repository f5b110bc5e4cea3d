"""The workers' settings, and how a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from runtap_consumers.settings import ConsumerSettings
from runtap_schemas import SettingsError


def refusal_of(**values: str) -> str:
    with pytest.raises(SettingsError) as caught:
        ConsumerSettings.load(**values)
    return str(caught.value)


def test_costs_are_attributed_to_up_to_three_keys() -> None:
    assert ConsumerSettings.load(cost_by=" metadata.team, feature ,tenant").cost_attributes == (
        *("team", "feature", "tenant"),
    )
    assert "at most three" in refusal_of(cost_by="a,b,c,d")


@pytest.mark.parametrize("value", ["metadata.user", "user", "metadata.team,metadata.user"])
def test_the_user_is_not_attributed_to_twice(value: str) -> None:
    assert refusal_of(cost_by=value) == (
        f"RUNTAP_COST_BY={value!r}: leave 'user' out: costs are always attributed to it as well"
    )


@pytest.mark.parametrize("value", ["metadata.team,metadata.team", "team,metadata.team", "a,team,team"])
def test_no_key_is_attributed_to_twice(value: str) -> None:
    said = refusal_of(cost_by=value)
    assert said == f"RUNTAP_COST_BY={value!r}: 'team' is named more than once: name each metadata key once"


def test_what_is_wrong_is_told_in_our_words_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "expected a name of the IANA time zone database, such as Europe/Berlin"
    assert refusal_of(timezone="Mars") == f"RUNTAP_TIMEZONE='Mars': {expected}"
    monkeypatch.setenv("RUNTAP_TIMEZONE", "Mars")
    assert refusal_of() == f"RUNTAP_TIMEZONE='Mars': {expected}"


@pytest.mark.parametrize("address", ["sqlite://", "sqlite:///:memory:", "sqlite://host/file"])
def test_a_store_in_memory_or_on_another_host_is_refused(address: str) -> None:
    assert "expected a file, as in sqlite:///path" in refusal_of(database_url=address)


def test_options_are_named_as_such_and_variables_beside_them_as_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTAP_BOOTSTRAP_SERVERS", "kafka")
    with pytest.raises(SettingsError) as caught:
        ConsumerSettings.load(options=["database_url"], database_url="sqlite://")
    first, second = str(caught.value).split("; ")
    assert first.startswith("RUNTAP_BOOTSTRAP_SERVERS='kafka': expected host:port")
    assert second.startswith("--database-url='sqlite://': expected a file")


def test_the_password_of_the_store_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(" p@ss/word:1 \nno part of it\n")
    where = {"database_password_file": str(file)}
    url = make_url(ConsumerSettings.load(database_url="postgresql://runtap@db/runtap", **where).database_url)
    assert (url.username, url.password, url.host, url.database) == ("runtap", "p@ss/word:1", "db", "runtap")
    # A file, and a server that asks for none.
    for without in ("sqlite:///x.db", "postgresql:///runtap"):
        assert ConsumerSettings.load(database_url=without, **where).database_url == without
    again = url.render_as_string(hide_password=False)
    assert ConsumerSettings.load(database_url=again, **where).database_url == again
    assert "another password than RUNTAP_DATABASE_PASSWORD_FILE" in refusal_of(
        database_url="postgresql://u:p@h/d", **where
    )
    file.write_text("\n")
    assert f"RUNTAP_DATABASE_PASSWORD_FILE='{file}' is empty" in refusal_of(database_url="postgresql://u@h/d", **where)
    file.unlink()
    assert "cannot be read" in refusal_of(database_url="postgresql://u@h/d", **where)
