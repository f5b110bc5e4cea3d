"""A run's id as LangChain hands it on: what `config["run_id"]` held, of whatever type, to every callback of the run."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.runnables import RunnableConfig, RunnableLambda

from captured_events import Captured
from runtap_collector.capture.open_runs import identity_of
from runtap_schemas import RunNoted, RunStreamed


class Textless:
    """An object that has no text."""

    def __str__(self) -> str:
        raise GeneratorExit


class Derived(uuid.UUID):
    """A UUID of another class."""


_ID = uuid.UUID("0b1d5c1e-6b0f-4a59-9a4b-7d8f2f3a1c2d")
_FORMS = [str(_ID), str(_ID).upper(), _ID.hex, _ID.urn, f"{{{_ID}}}", Derived(int=_ID.int)]
_NO_UUIDS: list[Any] = ["my-run", "", "x" * 500, "\ud800", "lauf-ä", 7, 1.5, b"bytes", ("a", 1), Textless(), 10**5_000]


def _config(captured: Captured, run_id: Any) -> RunnableConfig:
    return RunnableConfig(callbacks=[captured.handler], run_id=run_id, run_name="root")


def _check_counts(captured: Captured) -> None:
    buffer = captured.emitter.buffer
    assert not buffer.dropped
    assert len(captured.events()) == buffer.captured - buffer.superseded
    assert not captured.emitter.open_runs.by_key


@pytest.mark.parametrize("run_id", [_ID, *_FORMS], ids=repr)
async def test_a_run_id_given_as_text_is_taken_as_the_id_that_it_is(run_id: Any) -> None:
    captured = Captured(capture_content=True, stream_tokens=True)
    chain = RunnableLambda(lambda text: text, name="child") | FakeListChatModel(responses=["good morning"])
    async for _ in chain.astream("x", _config(captured, run_id)):
        pass
    root = captured.ended_named("root")
    assert (root.run_id, root.trace_id, root.is_root, root.status) == (str(_ID), str(_ID), True, "ok")
    children = [run for run in captured.ended() if run is not root]
    assert [(run.parent_run_id, run.trace_id) for run in children] == [(str(_ID), str(_ID))] * len(children)
    assert {run.run_type for run in children} == {"chain", "llm"}
    assert captured.of(RunStreamed)
    _check_counts(captured)


def test_failures_under_a_text_are_one_failure() -> None:
    captured = Captured()

    def fail(_: object) -> None:
        raise ValueError("broken")

    chain = RunnableLambda(lambda text: text) | RunnableLambda(fail, name="child")
    with pytest.raises(ValueError, match="broken"):
        chain.invoke("x", _config(captured, str(_ID)))
    root, child = captured.ended_named("root").error, captured.ended_named("child").error
    assert root is not None
    assert child is not None
    assert (root.origin, child.origin) == (False, True)
    _check_counts(captured)


@pytest.mark.parametrize("run_id", _NO_UUIDS, ids=lambda value: type(value).__name__)
def test_what_is_no_uuid_costs_a_run_no_more_than_its_id(run_id: Any) -> None:
    captured = Captured()
    chain = RunnableLambda(lambda text: text, name="child") | RunnableLambda(lambda text: text)
    chain.invoke("x", _config(captured, run_id))
    root = captured.ended_named("root")
    assert captured.ended_named("child").parent_run_id == root.run_id == root.trace_id
    assert 0 < len(root.run_id) <= 64
    assert len(captured.ended()) == 3
    _check_counts(captured)


def test_texts_stand_as_they_are_and_long_ones_as_the_same_hash_every_time() -> None:
    assert identity_of("my-run") == "my-run"
    assert identity_of(7) == "7"
    assert identity_of("x" * 64) == "x" * 64
    assert identity_of("x" * 65) == identity_of("x" * 65) != identity_of("x" * 66)
    assert identity_of(_ID) is not _ID
    assert identity_of(_ID) == _ID == identity_of(_ID.hex)


def test_callbacks_may_name_one_run_by_uuid_and_by_text() -> None:
    captured = Captured(capture_content=True)
    captured.call("on_chain_start", {}, {}, run_id=_ID.hex, name="root")
    captured.call("on_chain_start", {}, {}, run_id=str(_ID), name="again")
    captured.call("on_tool_start", {}, "", run_id="t", parent_run_id=_ID, name="tool")
    captured.call("on_custom_event", "mood", {}, run_id="t")
    captured.call("on_tool_end", "", run_id="t", parent_run_id=str(_ID))
    captured.call("on_chain_end", {}, run_id=_ID)
    root, tool = captured.ended_named("root"), captured.ended_named("tool")
    assert (tool.run_id, tool.parent_run_id, tool.trace_id) == ("t", str(_ID), str(_ID))
    assert root.run_id == str(_ID)
    assert [note.run_id for note in captured.of(RunNoted)] == ["t"]
    _check_counts(captured)


def test_children_of_a_parent_that_nobody_saw_share_a_trace_by_its_text() -> None:
    captured = Captured()
    for number, parent in enumerate((_ID.hex, _ID, "nobody", "nobody")):
        captured.call("on_chain_start", {}, {}, run_id=uuid.uuid4(), parent_run_id=parent, name=f"n{number}")
        captured.call("on_chain_end", {}, run_id=next(iter(captured.emitter.open_runs.by_key.values())).run_id)
    assert [run.trace_id for run in captured.ended()] == [str(_ID), str(_ID), "nobody", "nobody"]
    _check_counts(captured)
