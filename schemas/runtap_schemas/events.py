"""The wire contract: one event is one JSON object, one line of a frame (`runtap_schemas.frame`).

The structs are both the encoder of the emitter and the decoder of the workers. Limits hold at decoding: what breaks
one becomes a dead letter, so that no fold can fail on it. The format only grows: a new field has a default, none is
removed, renamed or retyped, an unknown one is ignored. An event's number and its emitter stand in the frame's header.

Times are integer nanoseconds: `…_at_ns` since the Unix epoch, `…_duration_ns` and `time_to_…` from a monotonic clock.
"""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

MAX_NAME_LENGTH = 200
MAX_TEXT_LENGTH = 2_000
MAX_TOKENS = 10**9
# 116 days; sums of longer durations could pass 64 bits.
MAX_DURATION_NS = 10**16
MAX_METADATA_KEYS = 32
MAX_METADATA_LENGTH = 256
MAX_TAGS = 32
# A provider's word for what went wrong, `rate_limit_exceeded` say: short, and without room for a sentence.
ERROR_CODE_PATTERN = r"^[A-Za-z0-9_.-]{1,64}$"
MAX_STREAMED_LENGTH = 16 * 1024
MAX_SCORE = 10**9
# Of a report, which repeats them every time.
MAX_SKIPPED_RANGES = 1_000
MAX_PRICE_FACTS = 8
# Why a lane is given up whole: nothing of it follows. For any other reason its later numbers may still come.
PARTITION_GONE = "partition_gone"
_MAX_REASONS = 64

# A forged number must not take sums out of 64 bits; JavaScript knows integers up to here.
MAX_COUNT = 2**53 - 1
_INT64_MAX = 2**63 - 1
_MAX_FLOAT = sys.float_info.max

Identifier = Annotated[str, Meta(min_length=1, max_length=64)]
Name = Annotated[str, Meta(max_length=MAX_NAME_LENGTH)]
Text = Annotated[str, Meta(max_length=MAX_TEXT_LENGTH)]
Word = Annotated[str, Meta(min_length=1, max_length=32)]
Nanoseconds = Annotated[int, Meta(ge=0, le=_INT64_MAX)]
Duration = Annotated[int, Meta(ge=0, le=MAX_DURATION_NS)]
Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
Tokens = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
LaneNumber = Annotated[int, Meta(ge=1, le=MAX_COUNT)]
Score = Annotated[float, Meta(ge=-MAX_SCORE, le=MAX_SCORE)]
Dollars = Annotated[str, Meta(pattern=r"^[0-9]{1,4}(\.[0-9]{1,30})?$", max_length=35)]
StreamedText = Annotated[str, Meta(max_length=MAX_STREAMED_LENGTH)]
MetadataText = Annotated[str, Meta(max_length=MAX_METADATA_LENGTH)]
MetadataInteger = Annotated[int, Meta(ge=-_INT64_MAX - 1, le=_INT64_MAX)]
MetadataNumber = Annotated[float, Meta(ge=-_MAX_FLOAT, le=_MAX_FLOAT)]
MetadataValue = MetadataText | MetadataInteger | MetadataNumber | bool
Metadata = Annotated[dict[MetadataText, MetadataValue], Meta(max_length=MAX_METADATA_KEYS)]
Tags = Annotated[list[Name], Meta(max_length=MAX_TAGS)]
Status = Literal["ok", "error", "interrupted", "cancelled"]
UsageSource = Literal["response", "stream", "cache", "recorded", "none"]
ModelSource = Literal["answer", "request"]
PriceFacts = Annotated[dict[Word, Name], Meta(max_length=MAX_PRICE_FACTS)]
CountsByKind = Annotated[dict[Word, Count], Meta(max_length=_MAX_REASONS)]


class Usage(Struct, kw_only=True, frozen=True, gc=False, omit_defaults=True):
    """What a model call used. `None`: the provider did not report the figure; it is never 0 instead.

    `input_tokens` counts every prompt token, its parts (cache read, cache writes, audio, image) are subsets of it;
    `output_tokens` likewise (reasoning, audio).
    """

    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    cache_read_tokens: Tokens | None = None
    cache_write_5m_tokens: Tokens | None = None
    cache_write_1h_tokens: Tokens | None = None
    input_audio_tokens: Tokens | None = None
    input_image_tokens: Tokens | None = None
    reasoning_tokens: Tokens | None = None
    output_audio_tokens: Tokens | None = None
    web_searches: Tokens | None = None


class RunError(Struct, kw_only=True, frozen=True, gc=False, omit_defaults=True):
    """Why a run failed.

    `fingerprint` groups equal failures: hash of type, function and message with the changing parts out. `origin` is
    false where a child of the run ended with the same exception object: one failure counts once.

    `status_code` is HTTP's, `code` the provider's own word, `raised_at` module, function and line
    (`shop.orders.find:42`). `message` is null unless the service sends messages, which may quote anything.
    """

    type: Name
    category: Word
    message: Text | None = None
    fingerprint: Identifier
    origin: bool = True
    status_code: Annotated[int, Meta(ge=400, le=599)] | None = None
    code: Annotated[str, Meta(max_length=64, pattern=ERROR_CODE_PATTERN)] | None = None
    raised_at: Name | None = None


class Event(Struct, kw_only=True, gc=False, omit_defaults=True, tag_field="type"):
    """What every event carries: `at_ns`, the instant of its capture, the start of a started run, the end of an ended
    one.
    """

    at_ns: Nanoseconds


class RunEvent(Event, kw_only=True, gc=False, omit_defaults=True):
    """An event about one run. `is_root`: it has no parent."""

    run_id: Identifier
    trace_id: Identifier
    parent_run_id: Identifier | None = None
    is_root: bool = False
    session_id: Name | None = None
    user_id: Name | None = None
    service: Name
    environment: Name
    run_type: Word
    name: Name


class RunStarted(RunEvent, kw_only=True, gc=False, omit_defaults=True, tag="run.started"):
    """A run began. Not sent where the run had ended by then."""

    provider: Name | None = None
    request_model: Name | None = None


class RunEnded(RunEvent, kw_only=True, gc=False, omit_defaults=True, tag="run.ended"):
    """A run ended: every fact about it, on its own. `at_ns` is its end.

    `model` is the answering model, the requested one where the answer named none: `model_source` says which.
    `seller_host` is the host that the client was told to call, where it was told one. `price_facts` are the answer's
    own words of what changes a price: `inference_geo`, `region`, `speed` and the like. `reported_cost_usd` is what the
    provider itself said the call cost (a decimal). `root_name` names the root of its trace. `inputs` and `outputs` are
    there only where content is captured; `content_bytes` is their size, or at least so much, where they were cut off.
    """

    status: Status
    started_at_ns: Nanoseconds
    duration_ns: Duration
    time_to_first_token_ns: Duration | None = None
    provider: Name | None = None
    request_model: Name | None = None
    model: Name | None = None
    model_source: ModelSource | None = None
    seller_host: Name | None = None
    service_tier: Word | None = None
    price_facts: PriceFacts = msgspec.field(default_factory=dict)
    finish_reason: Name | None = None
    usage: Usage | None = None
    usage_source: UsageSource = "none"
    reported_cost_usd: Dollars | None = None
    error: RunError | None = None
    root_name: Name | None = None
    tags: Tags = msgspec.field(default_factory=list)
    metadata: Metadata = msgspec.field(default_factory=dict)
    inputs: Raw | UnsetType = UNSET
    outputs: Raw | UnsetType = UNSET
    content_bytes: Count | None = None


class RunNoted(RunEvent, kw_only=True, gc=False, omit_defaults=True, tag="run.noted"):
    """Something happened within a run: `retry`, `text`, `agent_action`, `agent_finish` or `custom`.

    `note` names it (the tool of an action, the name of a custom event); `data` is its content, only where captured.
    """

    kind: Word
    note: Name | None = None
    attempt: Count | None = None
    data: Raw | UnsetType = UNSET
    content_bytes: Count | None = None


class RunStreamed(RunEvent, kw_only=True, gc=False, omit_defaults=True, tag="run.streamed"):
    """Streamed text of a run, joined over 100 ms. `index` is that of its first token in the stream."""

    index: Count
    text: StreamedText


class SessionEvent(Event, kw_only=True, gc=False, omit_defaults=True):
    """An event about one session."""

    session_id: Name
    user_id: Name | None = None
    service: Name
    environment: Name
    tags: Tags = msgspec.field(default_factory=list)
    metadata: Metadata = msgspec.field(default_factory=dict)


class SessionStarted(SessionEvent, kw_only=True, gc=False, omit_defaults=True, tag="session.started"):
    """The service said that a session began."""


class SessionEnded(SessionEvent, kw_only=True, gc=False, omit_defaults=True, tag="session.ended"):
    """The service said that a session ended."""


class RunScored(Event, kw_only=True, gc=False, omit_defaults=True, tag="run.scored"):
    """What somebody or something thought of a run: feedback of a user, or an evaluator's verdict.

    `key` names what was judged (`helpful`, `correctness`); `score` is a number, `value` a category; `source` is who
    says so: `user`, `evaluator` or a word of the service's own. `comment` is content: only where that is captured.
    """

    run_id: Identifier
    key: Name
    score: Score | None = None
    value: Name | None = None
    source: Word = "user"
    comment: Text | None = None
    session_id: Name | None = None
    user_id: Name | None = None
    service: Name
    environment: Name


class SkippedRange(Struct, kw_only=True, frozen=True, gc=False):
    """Numbers of the lane that were given and will never be seen: `first` to `last`, both included."""

    first: LaneNumber
    last: LaneNumber
    reason: Word


class EmitterReported(Event, kw_only=True, gc=False, omit_defaults=True, tag="emitter.reported"):
    """What an emitter says of itself, cumulative since it began. It is an event of its lane, and counts itself.

    Everything captured before it stands before it in the lane or is counted here: captured is the report's own number
    + `dropped` (refused before a number was given, by reason and kind) + `superseded` (starts that were not sent since
    their end says it all). `skipped` are numbers that Kafka refused for good, the newest where there are more than fit.
    `closing`: nothing follows in this lane.
    """

    # Each report's own, and that of the one before: two chains mean two processes under one emitter id.
    report_id: Identifier
    previous_report_id: Identifier | None = None
    service: Name
    environment: Name
    host: Name
    process_id: Count
    runtap_version: Name
    started_at_ns: Nanoseconds
    closing: bool = False
    superseded: Count = 0
    dropped: Annotated[dict[Word, CountsByKind], Meta(max_length=_MAX_REASONS)] = msgspec.field(default_factory=dict)
    content_dropped: Count = 0
    skipped: Annotated[list[SkippedRange], Meta(max_length=MAX_SKIPPED_RANGES)] = msgspec.field(default_factory=list)


class LaneAbandoned(Event, kw_only=True, gc=False, omit_defaults=True, tag="lane.abandoned"):
    """Numbers of another emitter's lane that can never be sent: its partition is gone (`PARTITION_GONE`, all that
    follows in the lane then), they are too old, or Kafka refuses them.

    `report` is the newest report among what is given up, with what the emitter itself said of its losses.
    """

    emitter: Identifier
    first: LaneNumber
    last: LaneNumber
    reason: Word
    report: EmitterReported | None = None


AnyEvent = (
    RunStarted
    | RunEnded
    | RunNoted
    | RunStreamed
    | RunScored
    | SessionStarted
    | SessionEnded
    | EmitterReported
    | LaneAbandoned
)
