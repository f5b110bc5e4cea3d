"""Taps every LangChain and LangGraph run into Kafka.

from runtap_collector import RunTap

async with RunTap.from_env(service="checkout") as tap:
    await chain.ainvoke(question, config={"callbacks": [tap.handler]})
"""

from runtap_collector.capture.handler import RunTapHandler
from runtap_collector.errors import ConnectionConflictError, RuntapError, SettingsError
from runtap_collector.install import Installation, install
from runtap_collector.settings import CollectorSettings
from runtap_collector.stats import Delivery, EmitterHealth, Stats
from runtap_collector.tap import RunTap

__all__ = [
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
