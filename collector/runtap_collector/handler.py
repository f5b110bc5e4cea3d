"""
The callback handler: `RunTapHandler`, the first step of an event's way.

Its methods are plain functions that return a finished awaitable. LangChain's sync manager calls such a method directly
instead of making an event loop for it, its async manager calls it inline instead of as a task or in a thread, and
whoever awaits the result still can. One left as `async def` would cost 200 microseconds an event.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, Self, cast
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackHandler

from runtap_collector import emitter as emitters
from runtap_collector.capture import Capture
from runtap_collector.records import View
from runtap_collector.settings import CollectorSettings

if TYPE_CHECKING:
    from langchain_core.agents import AgentAction, AgentFinish
    from langchain_core.documents import Document
    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import ChatGenerationChunk, GenerationChunk, LLMResult
    from langchain_protocol.protocol import MessagesData
    from tenacity import RetryCallState

P = ParamSpec("P")


class _Finished:
    """
    An awaitable that is done. Not a coroutine, so LangChain's sync manager does not try to run it.
    """

    def __await__(self) -> Iterator[None]:
        return iter(())


# The cast: mypy takes overrides of `async def` only with this type.
_FINISHED = cast("Coroutine[Any, Any, None]", _Finished())


def _reports(kind: str) -> Callable[[Callable[P, None]], Callable[P, Coroutine[Any, Any, None]]]:
    """
    Makes a method of one that may fail: a failure is ours, never the app's, and its event is counted as lost.
    """

    def decorate(method: Callable[P, None]) -> Callable[P, Coroutine[Any, Any, None]]:
        @wraps(method)
        def report(*args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, None]:
            try:
                method(*args, **kwargs)
            except Exception:  # noqa: BLE001 - an app must not fail because its telemetry does
                cast(RunTapHandler, args[0])._capture.count_failure(kind)
            return _FINISHED

        return report

    return decorate


class RunTapHandler(AsyncCallbackHandler):
    """
    Reports every run it is attached to, in microseconds: never waits, never raises.

    Made without a tap it needs no set-up: settings come from the environment, the process's emitter starts with the
    first event and is closed at exit.
    """

    run_inline = True

    def __init__(self, *, _capture: Capture | None = None) -> None:
        """
        Reads the settings from the environment.

        Raises:
            SettingsError: a `RUNTAP_…` variable has a value that cannot work.
            ConnectionConflictError: this process's emitter has other connection settings.
        """
        if _capture is None:
            settings = CollectorSettings.load()
            _capture = Capture(emitters.attach_for_life(settings), View.of(settings))
        self._capture = _capture

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Models and graphs copy their callbacks; there is one emitter behind all of them.
        return self

    @_reports("run.started")
    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._capture.begin("llm", serialized, run_id, parent_run_id, tags, metadata, kwargs, messages)

    @_reports("run.started")
    def on_llm_start(
        self,
        serialized: dict[str, Any],
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._capture.begin("llm", serialized, run_id, parent_run_id, tags, metadata, kwargs, prompts)

    @_reports("run.started")
    def on_chain_start(
        self,
        serialized: dict[str, Any],
        inputs: dict[str, Any],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._capture.begin("chain", serialized, run_id, parent_run_id, tags, metadata, kwargs, inputs)

    @_reports("run.started")
    def on_tool_start(
        self,
        serialized: dict[str, Any],
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        content = input_str if inputs is None else inputs
        self._capture.begin("tool", serialized, run_id, parent_run_id, tags, metadata, kwargs, content)

    @_reports("run.started")
    def on_retriever_start(
        self,
        serialized: dict[str, Any],
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._capture.begin("retriever", serialized, run_id, parent_run_id, tags, metadata, kwargs, query)

    @_reports("run.streamed")
    def on_llm_new_token(
        self,
        token: str | list[str | dict[str, Any]],
        *,
        chunk: GenerationChunk | ChatGenerationChunk | None = None,
        run_id: UUID,
        **kwargs: Any,
    ) -> None:
        run = self._capture.open_run(run_id)
        if run is not None and run.first_token_ns is None and (token or _has_tool_call(chunk)):
            run.first_token_ns = time.monotonic_ns()

    @_reports("run.streamed")
    def on_stream_event(self, event: MessagesData, *, run_id: UUID, **kwargs: Any) -> None:
        run = self._capture.open_run(run_id)
        if run is not None and run.first_token_ns is None and event["event"] == "content-block-delta":
            run.first_token_ns = time.monotonic_ns()

    @_reports("run.ended")
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        self._capture.end_model(run_id, response)

    @_reports("run.ended")
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._capture.fail(run_id, error, kwargs.get("response"))

    @_reports("run.ended")
    def on_chain_end(self, outputs: dict[str, Any], *, run_id: UUID, **kwargs: Any) -> None:
        self._capture.end(run_id, outputs)

    @_reports("run.ended")
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._capture.fail(run_id, error)

    @_reports("run.ended")
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._capture.end(run_id, output)

    @_reports("run.ended")
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._capture.fail(run_id, error)

    @_reports("run.ended")
    def on_retriever_end(self, documents: Sequence[Document], *, run_id: UUID, **kwargs: Any) -> None:
        self._capture.end(run_id, documents)

    @_reports("run.ended")
    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._capture.fail(run_id, error)

    @_reports("run.noted")
    def on_text(self, text: str, *, run_id: UUID, **kwargs: Any) -> None:
        self._capture.note(run_id, "text", None, text)

    @_reports("run.noted")
    def on_retry(self, retry_state: RetryCallState, *, run_id: UUID, **kwargs: Any) -> None:
        self._capture.note(run_id, "retry", None, None, attempt=retry_state.attempt_number)

    @_reports("run.noted")
    def on_agent_action(self, action: AgentAction, *, run_id: UUID, **kwargs: Any) -> None:
        self._capture.note(run_id, "agent_action", action.tool, action.tool_input)

    @_reports("run.noted")
    def on_agent_finish(self, finish: AgentFinish, *, run_id: UUID, **kwargs: Any) -> None:
        self._capture.note(run_id, "agent_finish", None, finish.return_values)

    @_reports("run.noted")
    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._capture.note(run_id, "custom", name, data)


def _has_tool_call(chunk: object) -> bool:
    return bool(getattr(getattr(chunk, "message", None), "tool_call_chunks", None))
