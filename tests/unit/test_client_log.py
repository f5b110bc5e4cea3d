"""The Kafka client's log: rate-limited, and remembered."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import pytest

from runtap_consumers.kafka import client_log
from runtap_consumers.kafka.client_log import ClientLog, watch_client_log


@pytest.fixture
def log() -> Iterator[ClientLog]:
    made = watch_client_log(is_silent=False)
    made._let_through.clear()
    yield made
    made.is_silent = False


def test_repeats_of_a_message_are_let_through_once(log: ClientLog, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("aiokafka.cluster")
    watch_client_log()
    for number in range(1_900):
        logger.error("Topic %s not found in cluster metadata", f"topic-{number}")
    logger.error("something else")
    assert [record.getMessage() for record in caplog.records] == [
        "Topic topic-0 not found in cluster metadata",
        "something else",
    ]


def test_a_message_comes_again_after_a_while(
    log: ClientLog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_log, "REPEAT_SECONDS", 0.0)
    for _ in range(3):
        logging.getLogger("aiokafka").error("again")
    assert len(caplog.records) == 3


def test_what_the_client_is_subscribed_to_is_never_told(log: ClientLog, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        logger = logging.getLogger("aiokafka.consumer.subscription_state")
        watch_client_log()
        logger.info("Updating subscribed topics to: %s", ["runtap.events"])
        logger.warning("something is wrong")
        logging.getLogger("aiokafka.consumer.group_coordinator").info("Joined group")
    assert [record.getMessage() for record in caplog.records] == ["something is wrong", "Joined group"]


def test_silent_log_remembers_the_first_reason(log: ClientLog, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("aiokafka")
    logger.error("before")
    watch_client_log(is_silent=True)
    caplog.clear()
    began = time.monotonic()
    assert log.reason_since(began) is None
    logger.info("not a reason")
    logger.warning("Sending username and password in the clear")
    assert log.reason_since(began) is None
    logger.warning("a mere warning")
    assert log.reason_since(began) == "a mere warning"
    logger.error('Unable connect to "%s:%s": %s', "127.0.0.1", 1, "Connect call failed")
    logger.warning("its echo")
    assert log.reason_since(began) == 'Unable connect to "127.0.0.1:1": Connect call failed'
    assert caplog.records == []
