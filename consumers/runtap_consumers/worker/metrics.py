"""What a worker knows of itself, as Prometheus scrapes it: text format 0.0.4."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.responses import Response

if TYPE_CHECKING:
    from runtap_consumers.worker.health import Health


def answer_metrics(health: Health) -> Response:
    """What a scrape gets."""
    return Response(generate_latest(_OfHealth(health)), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})


class _OfHealth(Collector):
    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        """All families; counters begin with the process."""
        health = self._health
        lag = GaugeMetricFamily(
            "runtap_worker_lag_records",
            "Records in Kafka that a projection has not applied.",
            labels=("projection", "partition"),
        )
        for partition, lags in health.lags.items():
            for projection, records in lags.items():
                lag.add_metric((projection, str(partition)), records)
        yield lag
        sent = CounterMetricFamily(
            "runtap_notify_requests",
            "Requests to channels of alerts: delivered, failed (made again later), given_up; unreadable records.",
            labels=("channel", "outcome"),
        )
        for labels, requests in list(health.notifications.items()):
            sent.add_metric(labels, requests)
        yield sent
        forwarded = CounterMetricFamily(
            "runtap_forward_events",
            "Events of runs by what became of them: delivered, left_out, not_sampled, unreadable, refused_….",
            labels=("outcome",),
        )
        for outcome, events in list(health.forwarded.items()):
            forwarded.add_metric((outcome,), events)
        yield forwarded
        ready = "Whether the worker does its work, as /readyz says."
        yield GaugeMetricFamily("runtap_worker_ready", ready, value=not health.problems())
        commits = "Seconds that commits took in the store."
        yield SummaryMetricFamily("runtap_worker_commit_seconds", commits, health.commits, health.commit_seconds)
        for name, documentation, value in (
            ("records", "Records applied.", health.records_applied),
            ("events", "Events applied.", health.events_applied),
            ("dead_letters", "Records, or parts of them, that became dead letters.", health.dead_letters),
            ("fenced", "Commits refused since another worker owned the partition.", health.fenced),
            ("backoffs", "Times that a partition had to wait after Kafka or the store failed.", health.backoffs),
        ):
            yield CounterMetricFamily(f"runtap_worker_{name}", documentation, value=value)
