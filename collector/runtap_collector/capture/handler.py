"""The callback handler: `RunTapHandler`, the first step of an event's way.

Its methods are plain functions that return a finished awaitable. LangChain's sync manager calls such a method directly
instead of making an event loop for it, its async manager calls it inline instead of as a task or in a thread, and
whoever awaits the result still can. One left as `async def` would cost 200 microseconds an event.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, cast
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackHandler

from runtap_collector.capture.capture import Capture
from runtap_collector.capture.open_runs import key_of
from runtap_collector.capture.text import attribute_of
from runtap_collector.capture.usage import note_usage
from runtap_collector.send.records import View
from runtap_collector.settings import CollectorSettings

if TYPE_CHECKING:
    from langchain_core.agents import AgentAction, AgentFinish
    from langchain_core.documents import Document
    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import ChatGenerationChunk, GenerationChunk, LLMResult
    from langchain_protocol.protocol import MessagesData
    from tenacity import RetryCallState


class _Finished:
    """An awaitable that is done. Not a coroutine, so LangChain's sync manager does not try to run it."""

    def __await__(self) -> Iterator[None]:
        return iter(())


# The cast: mypy takes overrides of `async def` only with this type.
_FINISHED = cast("Coroutine[Any, Any, None]", _Finished())


class RunTapHandler(AsyncCallbackHandler):
    """Reports every run it is attached to, in microseconds: never waits, never raises.

    Made without a tap it needs no set-up: settings come from the environment, the process's emitter starts with the
    first event and is closed at exit.
    """

    run_inline = True

    def __init__(self, *, _capture: Capture | None = None) -> None:
        """Reads the settings from the environment.

        Raises:
            SettingsError: a `RUNTAP_…` variable has a value that cannot work.
            ConnectionConflictError: this process's emitter has other connection settings.
        """
        if _capture is None:
            # Not loaded with this module: see `RunTap`.
            from runtap_collector.process import attach_for_life

            settings = CollectorSettings.load()
            _capture = Capture(attach_for_life(settings), View.of(settings))
        self._capture = _capture

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Models and graphs copy their callbacks; there is one emitter behind all of them.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled, mostly for a process of a pool, where it reports to that process's emitter.
        return _handler_of_this_process, (type(self), self._capture.view)

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
    ) -> Coroutine[Any, Any, None]:
        self._capture.begin("llm", serialized, run_id, parent_run_id, tags, metadata, kwargs, messages)
        return _FINISHED

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
    ) -> Coroutine[Any, Any, None]:
        self._capture.begin("llm", serialized, run_id, parent_run_id, tags, metadata, kwargs, prompts)
        return _FINISHED

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
    ) -> Coroutine[Any, Any, None]:
        self._capture.begin("chain", serialized, run_id, parent_run_id, tags, metadata, kwargs, inputs)
        return _FINISHED

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
    ) -> Coroutine[Any, Any, None]:
        content = input_str if inputs is None else inputs
        self._capture.begin("tool", serialized, run_id, parent_run_id, tags, metadata, kwargs, content)
        return _FINISHED

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
    ) -> Coroutine[Any, Any, None]:
        self._capture.begin("retriever", serialized, run_id, parent_run_id, tags, metadata, kwargs, query)
        return _FINISHED

    def on_llm_new_token(
        self,
        token: str | list[str | dict[str, Any]],
        *,
        chunk: GenerationChunk | ChatGenerationChunk | None = None,
        run_id: UUID,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, None]:
        # Called for every token: nothing more may be done here.
        try:
            run = self._capture.emitter.open_runs.by_key.get(run_id.int if type(run_id) is UUID else key_of(run_id))
            if run is not None:
                if not run.first_token_ns and (token or _has_tool_call(chunk)):
                    run.first_token_ns = time.monotonic_ns()
                if chunk is not None:
                    # Not `getattr`: what a chunk lacks costs microseconds to ask for.
                    usage = getattr(vars(chunk).get("message"), "usage_metadata", None)
                    if usage and type(usage) is dict:
                        note_usage(run, usage)
                if run.view.streams_tokens:
                    self._capture.add_token(run, token)
        except Exception:  # noqa: BLE001 - an app must not fail because its telemetry does
            self._capture.count_failure("run.streamed")
        return _FINISHED

    def on_stream_event(self, event: MessagesData, *, run_id: UUID, **kwargs: Any) -> Coroutine[Any, Any, None]:
        try:
            run = self._capture.open_run(run_id)
            if run is not None and not run.first_token_ns and event["event"] == "content-block-delta":
                run.first_token_ns = time.monotonic_ns()
        except Exception:  # noqa: BLE001
            self._capture.count_failure("run.streamed")
        return _FINISHED

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> Coroutine[Any, Any, None]:
        self._capture.end_model(run_id, response)
        return _FINISHED

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> Coroutine[Any, Any, None]:
        self._capture.fail(run_id, error, kwargs.get("response"))
        return _FINISHED

    def on_chain_end(self, outputs: dict[str, Any], *, run_id: UUID, **kwargs: Any) -> Coroutine[Any, Any, None]:
        self._capture.end(run_id, outputs)
        return _FINISHED

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> Coroutine[Any, Any, None]:
        self._capture.fail(run_id, error)
        return _FINISHED

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> Coroutine[Any, Any, None]:
        self._capture.end(run_id, output)
        return _FINISHED

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> Coroutine[Any, Any, None]:
        self._capture.fail(run_id, error)
        return _FINISHED

    def on_retriever_end(
        self, documents: Sequence[Document], *, run_id: UUID, **kwargs: Any
    ) -> Coroutine[Any, Any, None]:
        self._capture.end(run_id, documents)
        return _FINISHED

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> Coroutine[Any, Any, None]:
        self._capture.fail(run_id, error)
        return _FINISHED

    def on_text(self, text: str, *, run_id: UUID, **kwargs: Any) -> Coroutine[Any, Any, None]:
        self._capture.note(run_id, "text", None, text)
        return _FINISHED

    def on_retry(self, retry_state: RetryCallState, *, run_id: UUID, **kwargs: Any) -> Coroutine[Any, Any, None]:
        self._capture.note(run_id, "retry", None, None, attempt=attribute_of(retry_state, "attempt_number"))
        return _FINISHED

    def on_agent_action(self, action: AgentAction, *, run_id: UUID, **kwargs: Any) -> Coroutine[Any, Any, None]:
        self._capture.note(run_id, "agent_action", attribute_of(action, "tool"), attribute_of(action, "tool_input"))
        return _FINISHED

    def on_agent_finish(self, finish: AgentFinish, *, run_id: UUID, **kwargs: Any) -> Coroutine[Any, Any, None]:
        self._capture.note(run_id, "agent_finish", None, attribute_of(finish, "return_values"))
        return _FINISHED

    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> Coroutine[Any, Any, None]:
        self._capture.note(run_id, "custom", name, data)
        return _FINISHED


def _has_tool_call(chunk: object) -> bool:
    return bool(getattr(getattr(chunk, "message", None), "tool_call_chunks", None))


def _handler_of_this_process(kind: type[RunTapHandler], view: View) -> RunTapHandler:
    from runtap_collector.process import attach_as_it_is

    return kind(_capture=Capture(attach_as_it_is(), view))
