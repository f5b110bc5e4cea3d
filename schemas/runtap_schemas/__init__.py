"""
What emitters and workers agree on: events, topics, and how to reach Kafka.
"""

from runtap_schemas.codec import (
    Skipped,
    Unreadable,
    decode_alert,
    decode_event,
    encode_alert,
    encode_event,
    number_event,
)
from runtap_schemas.connection import ConnectionSettings, Settings
from runtap_schemas.errors import RuntapError, SettingsError
from runtap_schemas.events import (
    Alert,
    AnyEvent,
    EmitterReported,
    Event,
    ReplayedLane,
    RunEnded,
    RunError,
    RunEvent,
    RunNoted,
    RunStarted,
    RunStreamed,
    SessionEnded,
    SessionEvent,
    SessionStarted,
    SkippedRange,
    Usage,
)

__all__ = [
    "Alert",
    "AnyEvent",
    "ConnectionSettings",
    "EmitterReported",
    "Event",
    "ReplayedLane",
    "RunEnded",
    "RunError",
    "RunEvent",
    "RunNoted",
    "RunStarted",
    "RunStreamed",
    "RuntapError",
    "SessionEnded",
    "SessionEvent",
    "SessionStarted",
    "Settings",
    "SettingsError",
    "Skipped",
    "SkippedRange",
    "Unreadable",
    "Usage",
    "decode_alert",
    "decode_event",
    "encode_alert",
    "encode_event",
    "number_event",
]
