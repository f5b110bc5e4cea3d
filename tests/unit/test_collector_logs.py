"""The collector's log lines."""

from __future__ import annotations

import logging

import pytest

from runtap_collector.logs import log

_QUOTED = "what a customer wrote"


def test_line_has_event_and_fields_without_passwords_and_without_what_an_exception_quotes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    try:
        raise ValueError(_QUOTED)
    except ValueError:
        log.error("sender_died", reason="cannot reach kafka://ann:hunter2@broker, 100 %s", count=3, exc_info=True)
    (record,) = caplog.records
    line = record.getMessage()
    assert line.startswith("event='sender_died' reason='cannot reach kafka://***@broker, 100 %s' count=3 exception=")
    assert (line.endswith("ValueError'"), "test_collector_logs.py" in line) == (True, True)
    assert "customer" not in line
    assert (record.name, record.levelno, record.filename) == (
        "runtap_collector",
        logging.ERROR,
        "test_collector_logs.py",
    )


def test_nothing_is_written_that_the_app_does_not_want(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="runtap_collector")
    log.warning("kafka_reached", topic="t")
    assert caplog.records == []
