"""Errors of the demo package.

RuntapError
└── DemoError
    ├── KafkaJarsMissingError    Apache Kafka's jars are not cached and cannot be downloaded
    ├── PortTakenError           somebody else listens on the wished port
    └── ChildEndedError          a process of the demo, or a broker, ended before its time or did not start
"""

from __future__ import annotations

from pathlib import Path

from runtap_schemas import RuntapError


class DemoError(RuntapError):
    """Root of the demo's errors; its text can be shown to a person as it is."""


class KafkaJarsMissingError(DemoError):
    """Apache Kafka's jars are not cached and cannot be downloaded."""

    def __init__(self, version: str, cache: Path, reason: str) -> None:
        super().__init__(
            f"Apache Kafka {version} is not in {cache} and could not be brought there: {reason}. "
            "It comes from Maven Central, once: connect this machine to the internet or name a mirror in jgo's "
            "configuration file; or copy that folder from a machine that has it (RUNTAP_KAFKA_CACHE names the folder "
            "above it); or use a Kafka of your own: --bootstrap-servers, or RUNTAP_BOOTSTRAP_SERVERS for the tests."
        )
        self.version = version
        self.cache = cache
        self.reason = reason


class PortTakenError(DemoError):
    """Somebody else listens on the wished port."""

    def __init__(self, port: int) -> None:
        super().__init__(
            f"Port {port} of 127.0.0.1 is taken: end the program that listens there (another Kafka, or another "
            "`runtap dev`?), or choose another with --port"
        )
        self.port = port


class ChildEndedError(DemoError):
    """A process of the demo ended before its time, or did not start."""

    def __init__(self, name: str, what: str, log: Path, last_lines: str) -> None:
        super().__init__(f"{name} {what}; the end of its log {log}:\n{last_lines}")
        self.log = log
        self.last_lines = last_lines
