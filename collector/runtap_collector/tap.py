"""What a service holds: `RunTap`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from types import TracebackType
from typing import Any, Self, Unpack
from uuid import UUID

from runtap_collector.capture.capture import Capture, current_session, make_session
from runtap_collector.capture.handler import RunTapHandler
from runtap_collector.capture.recorded import UsageCounts, recorded_call, usage_of
from runtap_collector.capture.text import clip, name_of, text_of
from runtap_collector.capture.translate import dollars_of, word_of
from runtap_collector.send.encoding import score_of, session_of
from runtap_collector.send.records import Session, View
from runtap_collector.settings import CollectorSettings, SettingsOverrides
from runtap_collector.stats import Delivery, EmitterHealth, Stats
from runtap_schemas.events import MAX_DURATION_NS, MAX_SCORE, MAX_TEXT_LENGTH

FLUSH_SECONDS = 5.0
CLOSE_SECONDS = 2.0
MAX_SESSIONS = 10_000


class RunTap:
    """A service's view on the process's emitter: its handler, its sessions, its end.

        async with RunTap.from_env(service="checkout") as tap:
            await chain.ainvoke(question, config={"callbacks": [tap.handler]})

    Also a plain context manager. Several taps share one emitter; the last one that closes ends it.
    """

    def __init__(self, settings: CollectorSettings) -> None:
        """Connects to nothing yet: the first event does.

        Raises:
            ConnectionConflictError: this process already emits with other connection settings.
            SettingsError: the connection's files cannot be read.
        """
        # The Kafka client takes 0.1 s to load, for which no import of this package and no callback should wait.
        from runtap_collector.process import attach

        self._view = View.of(settings)
        self._emitter = attach(settings)
        self._is_closed = False
        self._sessions: dict[str, Session] = {}
        self._capture = Capture(self._emitter, self._view)
        self.handler = RunTapHandler(_capture=self._capture)

    @classmethod
    def from_env(cls, *, service: str | None = None, **overrides: Unpack[SettingsOverrides]) -> Self:
        """A tap with settings from the environment.

        Args:
            service: name of the service, `RUNTAP_SERVICE` if not given.
            **overrides: other settings that win over the environment, named as in `CollectorSettings`.

        Raises:
            SettingsError: a value cannot work.
            ConnectionConflictError: this process already emits with other connection settings.
        """
        return cls(CollectorSettings.load(service=service, **overrides))

    @contextmanager
    def session(
        self,
        session_id: str,
        *,
        user_id: str | None = None,
        tags: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Iterator[None]:
        """Gives a session to all runs that begin inside, in tasks and threads with a copy of this context too.

        Tags and metadata are added to those runs. Emits the session's start and end.

        Raises:
            ValueError: the session id is empty.
        """
        before = current_session.get()
        self.start_session(session_id, user_id=user_id, tags=tags, metadata=metadata)
        try:
            yield
        finally:
            self.end_session(session_id)
            current_session.set(before)

    def start_session(
        self,
        session_id: str,
        *,
        user_id: str | None = None,
        tags: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Emits the start of a session, and gives it to the runs that begin in this context until `end_session`.

        Raises:
            ValueError: the session id is empty.
        """
        session = make_session(session_id, self._view, user_id, tags, metadata)
        self._sessions[session.session_id] = session
        if len(self._sessions) > MAX_SESSIONS:
            # The oldest session, which nobody ended: its end will have no tags and metadata.
            self._sessions.pop(next(iter(self._sessions)), None)
        current_session.set(session)
        self._offer(session, is_start=True)

    def end_session(self, session_id: str) -> None:
        """Emits the end of a session, whether or not this process started it.

        Raises:
            ValueError: the session id is empty.
        """
        name = make_session(session_id, self._view, None, None, None)
        session = self._sessions.pop(name.session_id, name)
        if current_session.get() is session:
            current_session.set(None)
        self._offer(session, is_start=False)

    def _offer(self, session: Session, *, is_start: bool) -> None:
        self._emitter.offer(session_of(session, is_start=is_start))

    def record_usage(
        self,
        *,
        model: str,
        provider: str | None = None,
        name: str = "recorded",
        service_tier: str | None = None,
        duration_seconds: float = 0.0,
        cost_usd: Decimal | str | float | None = None,
        tags: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        **counts: Unpack[UsageCounts],
    ) -> None:
        """Emits a model call that LangChain has no callback for (embeddings, an SDK called by hand), as a run of its
        own.

        It gets the session of this context, as runs do. A count that is left out, or is none (negative, no integer),
        is unknown, never 0; without `input_tokens` or `output_tokens` there is no price.

        Args:
            model: the answering model.
            provider: who sold it; else the model's name decides.
            name: of the run.
            service_tier: as the provider names it, such as `flex` or `batch`.
            duration_seconds: how long the call took until now.
            cost_usd: what the provider said it billed; it beats any price table.
            tags: of the run.
            metadata: of the run; `session_id` and `user_id` mean what they mean in LangChain's.
            **counts: tokens by class, and web searches, as `runtap_schemas.Usage` names them.

        Raises:
            ValueError: the model is empty, or the duration is no time.
        """
        run, outcome = recorded_call(self._view, name, provider, model)
        outcome.service_tier = word_of(service_tier)
        outcome.reported_cost_usd = dollars_of(cost_usd)
        outcome.usage = usage_of(counts)
        if not 0 <= duration_seconds < MAX_DURATION_NS / 1e9:
            raise ValueError(f"duration_seconds is {duration_seconds!r}: expected how long the call took")
        self._capture.record(run, outcome, int(duration_seconds * 1e9), list(tags or ()), metadata or {})

    def feedback(
        self,
        run_id: UUID | str,
        key: str,
        score: bool | float | str,
        *,
        comment: str | None = None,
        source: str = "user",
    ) -> None:
        """Emits what somebody, or something, thought of a run, also long after it ended and in another process.

        Args:
            run_id: LangChain's id of the run, such as that of `config={"run_id": …}`.
            key: what was judged: `helpful`, `correctness`.
            score: a number of at most a billion either way; `True` is 1, `False` is 0; a text is a category.
            comment: content: sent only with `RUNTAP_CAPTURE_CONTENT=true`.
            source: who says so: `user`, `evaluator`, or a word of your own.

        Raises:
            ValueError: id, key or category is empty, or the score is no such number.
        """
        number = None if isinstance(score, str) else float(score)
        if number is not None and not abs(number) <= MAX_SCORE:
            raise ValueError(f"score is {score!r}: expected a number of at most {MAX_SCORE:,.0f} either way, or a text")
        identity, named = text_of(run_id), name_of(key)
        category = name_of(score) if isinstance(score, str) else None
        if not identity or named is None or (number is None and category is None):
            raise ValueError(
                f"feedback needs a run's id, a key and a score that are not empty, not {run_id!r}, {key!r}"
            )
        note = None if comment is None else clip(comment, MAX_TEXT_LENGTH)
        scored = score_of(self._view, identity[:64], named, number, category, word_of(source) or "user", note)
        self._emitter.offer(scored)

    def flush(self, timeout: float = FLUSH_SECONDS) -> Delivery:
        """Waits until everything captured so far is in Kafka, at most `timeout` seconds. Blocks; see `aflush`."""
        return self._emitter.flush(timeout)

    def close(self, timeout: float = CLOSE_SECONDS) -> Delivery:
        """Waits like `flush`; the process's last tap also ends the emitter, and spools what is not sent then.

        Handlers stay attached and do nothing from then on. Blocks; see `aclose`.
        """
        if self._is_closed:
            return self._emitter.outbox.delivery()
        self._is_closed = True
        return self._emitter.detach(timeout)

    async def aflush(self, timeout: float = FLUSH_SECONDS) -> Delivery:
        """`flush` without blocking the event loop."""
        return await asyncio.to_thread(self.flush, timeout)

    async def aclose(self, timeout: float = CLOSE_SECONDS) -> Delivery:
        """`close` without blocking the event loop."""
        return await asyncio.to_thread(self.close, timeout)

    def stats(self) -> Stats:
        """The emitter's side of the ledger, counted since it began."""
        return self._emitter.stats()

    def health(self) -> EmitterHealth:
        """Whether events get to Kafka now, and what stands in their way."""
        return self._emitter.health()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
