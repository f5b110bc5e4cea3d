"""What users may import, and nothing else."""

from __future__ import annotations

import types

import pytest

import runtap_collector
import runtap_schemas


@pytest.mark.parametrize("package", [runtap_collector, runtap_schemas])
def test_all_names_are_listed_and_sorted_and_exist(package: types.ModuleType) -> None:
    listed = list(package.__all__)
    assert listed == sorted(listed)
    public = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(listed)


def test_the_collector_exports_what_the_readme_attaches() -> None:
    assert runtap_collector.__all__ == [
        "CollectorSettings",
        "ConnectionConflictError",
        "Delivery",
        "EmitterHealth",
        "Installation",
        "RunTap",
        "RunTapHandler",
        "RuntapError",
        "SettingsError",
        "Stats",
        "install",
    ]
