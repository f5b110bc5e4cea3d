"""The JSON of a run's end (`runtap_schemas.RunEnded`) in three parts: its own, its kind's, and what its trace shares.

Ends are nearly all that is sent, and most of one has been written before: in half the time this way.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from msgspec import UNSET, Raw, Struct, UnsetType, json

from runtap_collector.capture.text import clip, clip_tags, let_signals_pass
from runtap_collector.capture.translate import has_preview_search, request_of, run_name
from runtap_collector.send.records import MetadataValues, OpenRun, Outcome
from runtap_schemas import RunError, Usage
from runtap_schemas.events import MAX_DURATION_NS, MAX_NAME_LENGTH

_encode = json.Encoder().encode


class _End(Struct, gc=False, omit_defaults=True, tag_field="type", tag="run.ended"):
    at_ns: int
    run_id: Any
    trace_id: Any
    status: str
    started_at_ns: int
    duration_ns: int
    parent_run_id: Any = None
    is_root: bool = False
    time_to_first_token_ns: int | None = None
    provider: str | None = None
    request_model: str | None = None
    model: str | None = None
    model_source: str | None = None
    seller_host: str | None = None
    service_tier: str | None = None
    price_facts: dict[str, str] = {}
    finish_reason: str | None = None
    usage: Usage | None = None
    usage_source: str = "none"
    reported_cost_usd: str | None = None
    error: RunError | None = None
    inputs: Raw | UnsetType = UNSET
    outputs: Raw | UnsetType = UNSET
    content_bytes: int | None = None


class _Kind(Struct, gc=False, omit_defaults=True):
    service: str
    environment: str
    run_type: str
    name: str
    root_name: str | None = None
    tags: list[str] = []


class _Shared(Struct, gc=False, omit_defaults=True):
    session_id: str | None = None
    user_id: str | None = None
    metadata: MetadataValues = {}


def encode_end(run: OpenRun, outcome: Outcome) -> bytes:
    """The JSON of a run's end, without a number."""
    parent_run_id = run.parent_run_id
    end = _End(
        run.ended_at_ns,
        run.run_id,
        run.trace.id,
        outcome.status,
        run.started_at_ns,
        run.duration_ns if 0 <= run.duration_ns <= MAX_DURATION_NS else _clamped(run.duration_ns),
        parent_run_id,
        parent_run_id is None,
    )
    if run.run_type == "llm":
        if run.first_token_ns:
            end.time_to_first_token_ns = _clamped(run.first_token_ns - run.started_monotonic_ns)
        provider, request_model, request_tier, end.seller_host = request_of(run)
        end.provider = provider or outcome.provider
        end.request_model = request_model
        end.model = outcome.model or request_model
        if end.model is not None:
            end.model_source = "request" if outcome.model is None else "answer"
        end.service_tier = outcome.service_tier or request_tier
        if outcome.price_facts:
            end.price_facts = outcome.price_facts
        if outcome.usage is not None and outcome.usage.web_searches and has_preview_search(run):
            end.price_facts = {**outcome.price_facts, "web_search": "preview"}
        end.finish_reason = outcome.finish_reason
        end.usage = outcome.usage
        end.usage_source = outcome.usage_source
        end.reported_cost_usd = outcome.reported_cost_usd
    if outcome.error is not None:
        end.error = outcome.error
    if run.inputs is not None:
        end.inputs = Raw(run.inputs)
    if run.outputs is not None:
        end.outputs = Raw(run.outputs)
    if run.lost_bytes:
        end.content_bytes = run.lost_bytes + len(run.inputs or b"") + len(run.outputs or b"")
    return b"%b%b%b" % (_encode(end)[:-1], _kind_of(run), run.context.shared)


def _clamped(duration_ns: int) -> int:
    return min(max(0, duration_ns), MAX_DURATION_NS)


def _kind_of(run: OpenRun) -> bytes:
    view, tags, session = run.view, run.tags or (), run.session
    if session is not None and session.tags:
        tags = [*session.tags, *tags]
    name = run.given_name
    if type(name) is not str or not 0 < len(name) <= MAX_NAME_LENGTH:
        name = run_name(run)
    facts = (view.service, view.environment, run.run_type, name, run.trace.root_name)
    try:
        return _encode_kind(*facts, tuple(tags))
    except BaseException as error:  # noqa: BLE001 - a foreign object's methods raise what they like
        # What has no hash, or cannot be compared, is looked at by what it is.
        let_signals_pass(error)
        return _encode_kind(*facts, tuple(clip_tags(tags)))


@lru_cache(maxsize=1_024)
def _encode_kind(
    service: str, environment: str, run_type: str, name: str, root_name: str | None, tags: tuple[object, ...]
) -> bytes:
    kind = _Kind(service, environment, run_type, clip(name, MAX_NAME_LENGTH), root_name, clip_tags(tags))
    return b"," + _encode(kind)[1:-1]


def encode_shared(session_id: str | None, user_id: str | None, metadata: MetadataValues) -> bytes:
    """The JSON of what a run's children inherit, with the brace that ends their events."""
    shared = _encode(_Shared(session_id, user_id, metadata))
    return shared[1:] if len(shared) == 2 else b"," + shared[1:]
