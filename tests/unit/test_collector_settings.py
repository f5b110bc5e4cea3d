"""The collector's settings."""

from __future__ import annotations

import pytest

from runtap_collector import CollectorSettings, RunTapHandler, SettingsError
from runtap_collector.settings import SettingsOverrides


def test_defaults_capture_no_content_and_hold_32_mebibytes() -> None:
    settings = CollectorSettings.load()
    assert (settings.service, settings.environment, settings.metadata) == ("unnamed", "default", {})
    assert (settings.capture_content, settings.buffer_bytes) == (False, 32 * 1024 * 1024)


def test_every_setting_is_a_typed_argument() -> None:
    assert {"service", *SettingsOverrides.__annotations__} == set(CollectorSettings.model_fields)


def test_environment_is_read_and_overrides_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTAP_SERVICE", "checkout")
    monkeypatch.setenv("RUNTAP_METADATA", "team=blue, region=eu=west")
    monkeypatch.setenv("RUNTAP_CAPTURE_CONTENT", "true")
    settings = CollectorSettings.load(environment="production", service=None)
    assert (settings.service, settings.environment) == ("checkout", "production")
    assert settings.metadata == {"team": "blue", "region": "eu=west"}
    assert settings.capture_content
    assert CollectorSettings.load(service="given").service == "given"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RUNTAP_METADATA", "team"),
        ("RUNTAP_METADATA", "=blue"),
        ("RUNTAP_METADATA", f"team={'x' * 300}"),
        ("RUNTAP_METADATA", ",".join(f"k{i}=v" for i in range(40))),
        ("RUNTAP_BUFFER_BYTES", "lots"),
        ("RUNTAP_BUFFER_BYTES", "12"),
        ("RUNTAP_SERVICE", ""),
        ("RUNTAP_BOOTSTRAP_SERVERS", "nowhere"),
    ],
)
def test_value_that_cannot_work_stops_the_start_and_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        RunTapHandler()
