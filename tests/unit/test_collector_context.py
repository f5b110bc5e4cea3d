"""Contexts of runs that two threads work out at once. What they say: test_collector_handler.py."""

from __future__ import annotations

from uuid import uuid4

import pytest

from runtap_collector.capture import context as context_module
from runtap_collector.capture.context import context_of
from runtap_collector.send.parts import encode_shared
from runtap_collector.send.records import Context, OpenRun, Route, Session, View

_VIEW = View("s", "e", {}, captures_content=False)


def _run(parent: OpenRun | None = None, session_id: str | None = None) -> OpenRun:
    run_id = uuid4()
    run = OpenRun(run_id, None, "chain", "n", _VIEW, Route(run_id), parent=parent)
    run.metadata = {} if session_id is None else {"session_id": session_id}
    return run


def test_first_context_of_a_run_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run(session_id="s-1")
    first: list[Context] = []

    def be_late(context: Context) -> bytes:
        monkeypatch.setattr(context_module, "encode_shared", encode_shared)
        # Another thread is through with it meanwhile, and has let go of what the run was told.
        first.append(context_of(run))
        run.metadata = None
        return encode_shared(context)

    monkeypatch.setattr(context_module, "encode_shared", be_late)
    assert context_of(run) is first[0] is run.context
    assert first[0].session_id == "s-1"


def test_runs_share_the_context_that_they_inherit() -> None:
    root = _run(session_id="s-1")
    child = _run(root)
    # As LangChain does: the values are the same objects.
    child.metadata = root.metadata
    another = _run(child, "s-2")
    assert context_of(child) is context_of(root)
    assert (context_of(another).session_id, context_of(child).session_id) == ("s-2", "s-1")


def test_block_around_a_run_names_its_session_where_the_run_above_has_none() -> None:
    root = _run()
    child = _run(root)
    child.session = Session("s-1", _VIEW, "ann", metadata={"plan": "gold"})
    assert context_of(root).session_id is None
    context = context_of(child)
    assert (context.session_id, context.user_id, context.metadata) == ("s-1", "ann", {"plan": "gold"})


def test_runs_may_be_nested_deeper_than_functions() -> None:
    run = root = _run(session_id="s-1")
    for _ in range(5_000):
        run = _run(run)
        run.metadata = root.metadata
    assert context_of(run) is root.context
