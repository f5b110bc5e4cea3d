"""What emitters and workers agree on: events, topics, and how to reach Kafka."""

from runtap_schemas.alerts import Alert, AlertRule, AlertWindow, alert_key, decode_alert, encode_alert
from runtap_schemas.codec import Skipped, Unreadable, decode_event, encode_event
from runtap_schemas.connection import ConnectionSettings, Settings
from runtap_schemas.errors import RuntapError, SettingsError
from runtap_schemas.events import (
    AnyEvent,
    EmitterReported,
    Event,
    LaneAbandoned,
    RunEnded,
    RunError,
    RunEvent,
    RunNoted,
    RunScored,
    RunStarted,
    RunStreamed,
    SessionEnded,
    SessionEvent,
    SessionStarted,
    SkippedRange,
    Usage,
)
from runtap_schemas.frame import Frame, decode_frame, emitter_of, encode_frame

__all__ = [
    "Alert",
    "AlertRule",
    "AlertWindow",
    "AnyEvent",
    "ConnectionSettings",
    "EmitterReported",
    "Event",
    "Frame",
    "LaneAbandoned",
    "RunEnded",
    "RunError",
    "RunEvent",
    "RunNoted",
    "RunScored",
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
    "alert_key",
    "decode_alert",
    "decode_event",
    "decode_frame",
    "emitter_of",
    "encode_alert",
    "encode_event",
    "encode_frame",
]
