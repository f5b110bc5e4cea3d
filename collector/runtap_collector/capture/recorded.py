"""Model calls that the service itself reports: `RunTap.record_usage`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict
from uuid import uuid4

from runtap_collector.capture.text import name_of
from runtap_collector.capture.usage import tokens_of
from runtap_collector.send.records import OpenRun, Outcome, Trace, View
from runtap_schemas import Usage


class UsageCounts(TypedDict, total=False):
    """The fields of `runtap_schemas.Usage`."""

    input_tokens: int | None
    output_tokens: int | None
    cache_read_tokens: int | None
    cache_write_5m_tokens: int | None
    cache_write_1h_tokens: int | None
    input_audio_tokens: int | None
    input_image_tokens: int | None
    reasoning_tokens: int | None
    output_audio_tokens: int | None
    web_searches: int | None


def recorded_call(view: View, name: str, provider: str | None, model: str) -> tuple[OpenRun, Outcome]:
    """A run of its own, and how it ended, without usage yet.

    Raises:
        ValueError: the model is empty.
    """
    model_name = name_of(model)
    if model_name is None:
        raise ValueError("a recorded call needs the name of its model")
    run_id = uuid4()
    run_name = name_of(name) or "recorded"
    run = OpenRun(run_id, None, "llm", run_name, view, Trace(run_id, run_name))
    return run, Outcome("ok", provider=name_of(provider), model=model_name, usage_source="recorded")


def usage_of(counts: Mapping[str, object]) -> Usage:
    """Usage of counts that may be anything.

    Raises:
        TypeError: there is no such count.
    """
    return Usage(**{name: tokens_of(count) for name, count in counts.items()})
