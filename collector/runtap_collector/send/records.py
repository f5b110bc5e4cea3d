"""What callbacks keep of a run until it is encoded: references to what LangChain gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from runtap_schemas import RunError, Usage
from runtap_schemas.events import Status, UsageSource

if TYPE_CHECKING:
    from runtap_collector.settings import CollectorSettings

MetadataValues = dict[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class View:
    """Whose runs a handler reports."""

    service: str
    environment: str
    metadata: MetadataValues
    captures_content: bool
    streams_tokens: bool = False
    keeps_error_messages: bool = False

    @classmethod
    def of(cls, settings: CollectorSettings) -> View:
        """The view that settings describe."""
        return cls(
            settings.service,
            settings.environment,
            dict(settings.metadata),
            settings.capture_content,
            settings.capture_content and settings.stream_tokens,
            settings.error_messages,
        )


# The structs below are not tracked by the collector of garbage, which otherwise walks all that wait. What could close
# a cycle (exceptions, foreign metadata) is let go when a run leaves the table of open runs.


class Trace(Struct, gc=False):
    """What all runs under one root share: its id (a UUID, or a text), and its name where the root was seen."""

    id: Any
    root_name: str | None = None


class Stream(Struct, gc=False):
    """Text that a model has streamed and that is in no event yet. `index` is the place of its first token."""

    index: int = 0
    length: int = 0
    parts: list[str] = field(default_factory=list)
    sent_monotonic_ns: int = 0


class Context(Struct, frozen=True, gc=False):
    """Session, user and metadata of a run, made to fit the contract. Runs that inherit them share it.

    Attributes:
        own_keys: the keys of the metadata that LangChain gave which are not its own.
        shared: all of it as JSON, with the brace that ends an event.
    """

    metadata: MetadataValues
    session_id: str | None = None
    user_id: str | None = None
    own_keys: tuple[str, ...] = ()
    shared: bytes = b"}"


class OpenRun(Struct, gc=False):
    """A run that has started: references to what its callbacks were given, and once it has ended, to how.

    The first six are LangChain's: it makes tags and metadata anew for each run and changes them no more.

    Attributes:
        given_name: `None`: the serialized object has it.
        owner: the capture whose handler saw the start.
        streamed_usage: of the last chunk of a stream that had some.
        has_running_usage: whether chunks repeat the usage so far, which LangChain adds up; `None`: one had any.
        child_errors: exceptions with which children ended: one that passes through here was counted there.
        ended: set by the buffer when it takes the end: only then is the start not needed any more.
        lost_bytes: original size of the content that was not kept.
    """

    # `Any` for UUIDs: msgspec writes them as text by itself, in a tenth of the time of `str`.
    run_id: Any
    parent_run_id: Any
    run_type: str
    given_name: Any
    view: View
    trace: Trace
    serialized: Mapping[str, Any] | None = None
    tags: Sequence[Any] | None = None
    metadata: Mapping[str, Any] | None = None
    invocation: Mapping[str, Any] | None = None
    session: Session | None = None
    owner: object = None
    context: Context = Context({})
    started_at_ns: int = 0
    started_monotonic_ns: int = 0
    first_token_ns: int = 0
    streamed_usage: Mapping[str, Any] | None = None
    has_running_usage: bool | None = None
    stream: Stream | None = None
    child_errors: list[tuple[BaseException, RunError]] | None = None
    interrupted: bool = False
    ended: bool = False
    outcome: Outcome | None = None
    duration_ns: int = 0
    ended_at_ns: int = 0
    inputs: bytes | None = None
    outputs: bytes | None = None
    lost_bytes: int = 0


class Outcome(Struct, gc=False):
    """How a run ended."""

    status: Status
    error: RunError | None = None
    provider: str | None = None
    model: str | None = None
    service_tier: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    usage_source: UsageSource = "none"
    reported_cost_usd: str | None = None
    price_facts: dict[str, str] = field(default_factory=dict)


class Session(Struct, gc=False):
    """A session that the service names. `metadata` holds the view's as well."""

    session_id: str
    view: View
    user_id: str | None = None
    tags: list[str] = field(default_factory=list)
    metadata: MetadataValues = field(default_factory=dict)


class Note(Struct, gc=False):
    """What happened within a run. `data` is its content as JSON, `lost_bytes` its size where it was not kept."""

    kind: str
    note: str | None = None
    attempt: int | None = None
    data: bytes | None = None
    lost_bytes: int = 0
