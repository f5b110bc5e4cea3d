"""Which runs share the context of the run above them, and which have their own. More: test_collector_handler.py."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from runtap_collector.capture.context import context_of
from runtap_collector.send.records import OpenRun, Session, Trace, View

_VIEW = View("s", "e", {}, captures_content=False)


def _run(parent: OpenRun | None = None, *, session: Session | None = None, **metadata: Any) -> OpenRun:
    run_id = uuid4()
    run = OpenRun(run_id, None, "chain", "n", _VIEW, Trace(run_id), metadata=metadata, session=session)
    run.context = context_of(run, parent)
    return run


def test_runs_share_the_context_that_they_inherit() -> None:
    root = _run(session_id="s-1")
    # As LangChain does: the values are the same objects, beside keys of its own.
    child = _run(root, **(root.metadata or {}), langgraph_step=1)
    another = _run(child, session_id="s-2")
    assert child.context is root.context
    assert (another.context.session_id, child.context.session_id) == ("s-2", "s-1")


@pytest.mark.parametrize(
    "given",
    [{"a": 1}, {"a": True, "b": 2, "session_id": "s-1"}, {"a": 1, "b": 2, "session_id": "s-1", "c": 3}, {}],
    ids=["fewer", "another type", "more", "none"],
)
def test_a_run_has_the_metadata_that_it_was_given_itself(given: dict[str, Any]) -> None:
    child = _run(_run(a=1, b=2, session_id="s-1"), **given)
    assert [(type(value), value) for value in child.context.metadata.values()] == [
        (type(value), value) for value in given.values()
    ]
    assert child.context.session_id == "s-1"


def test_block_around_a_run_names_its_session_where_the_run_above_has_none() -> None:
    root = _run()
    child = _run(root, session=Session("s-1", _VIEW, "ann", metadata={"plan": "gold"}))
    assert root.context.session_id is None
    context = child.context
    assert (context.session_id, context.user_id, context.metadata) == ("s-1", "ann", {"plan": "gold"})
