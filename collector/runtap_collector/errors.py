"""Errors of the collector.

RuntapError (runtap_schemas)
├── SettingsError (runtap_schemas)     a setting has a value that cannot work
└── ConnectionConflictError            a second tap wants another Kafka than this process's emitter has
"""

from __future__ import annotations

from runtap_schemas import RuntapError, SettingsError

__all__ = ["ConnectionConflictError", "RuntapError", "SettingsError"]


class ConnectionConflictError(RuntapError):
    """A process has one emitter, and it is connected to one Kafka.

    Attributes:
        differences: names of the settings that differ.
    """

    def __init__(self, differences: list[str]) -> None:
        self.differences = differences
        names = ", ".join(f"RUNTAP_{name.upper()}" for name in differences)
        super().__init__(
            f"this process already emits with other connection settings ({names} differ): "
            "give every RunTap of a process the same ones, or close the others first"
        )
