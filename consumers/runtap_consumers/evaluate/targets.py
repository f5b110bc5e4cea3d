"""What is called: a target or an evaluator of somebody's module, tapped, and what that call came to."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol
from uuid import uuid4

from langchain_core.runnables import Runnable, RunnableLambda

from runtap_consumers.errors import InputError
from runtap_consumers.projections.batch import Prices, price_call
from runtap_consumers.store.read.window_sums import EVALUATION
from runtap_schemas import ConnectionSettings, RunEnded

# Categories of errors that say nothing of the answer; all but the last go by themselves.
TRANSIENT = ("rate_limit", "timeout", "connection", "server")
INFRASTRUCTURE = (*TRANSIENT, "auth")


class Tap(Protocol):
    """What the collector's entry point returns."""

    handler: Any

    def close(self) -> Any:
        """Sends what there is."""


@dataclass(frozen=True)
class TappedCall:
    """A call that returned, or raised: `error` is its text, `category` its kind as error figures have it. What may be
    kept of it is `kept_error`: its type, and its message where the service sends messages.
    """

    run_id: str
    name: str
    output: Any
    error: str | None
    category: str | None
    kept_error: str | None
    started_at_ns: int
    latency_ns: int
    models: tuple[str, ...]
    input_tokens: int
    output_tokens: int
    cost_picodollars: int | None


class TappedCalls:
    """Calls with the collector's handler on them, so that the figures of this environment and ours are the same."""

    def __init__(self, settings: ConnectionSettings, prices: Prices) -> None:
        """Raises:
        InputError: this installation has no collector to tap with.
        """
        found = entry_points(group="runtap.watch", name="tap")
        if not found:
            raise InputError("the collector is not installed with these commands: install runtap again")
        self._prices = prices
        self._ended: dict[str, list[RunEnded]] = defaultdict(list)
        connection = {name: getattr(settings, name) for name in ConnectionSettings.model_fields}
        self._tap: Tap = found["tap"].load()(self._watch, environment=EVALUATION, **connection)

    def _watch(self, event: RunEnded) -> None:
        # A run that ends later than its root belongs to no call any more.
        if event.trace_id in self._ended:
            self._ended[event.trace_id].append(event)

    def close(self) -> Any:
        """Sends what there is to Kafka, or to the spool."""
        return self._tap.close()

    async def call(
        self, runnable: Runnable[Any, Any], value: Any, name: str, metadata: Mapping[str, Any]
    ) -> TappedCall:
        """Calls once. What it raises is part of the answer."""
        run_id = uuid4()
        ended = self._ended[str(run_id)]
        output, error, kept_error, category = None, None, None, None
        started_at_ns, began = time.time_ns(), time.monotonic_ns()
        try:
            output = await runnable.ainvoke(
                value,
                {
                    "callbacks": [self._tap.handler],
                    "run_id": run_id,
                    "run_name": name,
                    "metadata": dict(metadata),
                },
            )
        except Exception as raised:  # noqa: BLE001 - whatever it is, it is that target's
            error, kept_error, category = f"{type(raised).__name__}: {raised}", type(raised).__name__, "other"
        latency_ns = time.monotonic_ns() - began
        del self._ended[str(run_id)]
        root = next((event for event in ended if event.run_id == str(run_id)), None)
        if error is not None and root is not None and root.error is not None:
            category = root.error.category
            kept_error = error if root.error.message else kept_error
        calls = [event for event in ended if event.run_type == "llm"]
        usages = [event.usage for event in calls if event.usage is not None]
        return TappedCall(
            str(run_id),
            name,
            output,
            error,
            category,
            kept_error,
            started_at_ns,
            latency_ns if root is None else root.duration_ns,
            tuple(sorted({model for event in calls if (model := event.model or event.request_model)})),
            sum(usage.input_tokens or 0 for usage in usages),
            sum(usage.output_tokens or 0 for usage in usages),
            self._cost_of(calls),
        )

    def _cost_of(self, calls: list[RunEnded]) -> int | None:
        """As the projection of costs has it; `None` where the price of one is not known."""
        total = 0
        for event in calls:
            if event.seller_host is not None:
                event.provider = self._prices.seller_at(event.provider, event.seller_host)
            cost = price_call(event, event, event.at_ns, self._prices).cost_picodollars
            if cost is None and (event.status == "ok" or event.usage is not None):
                return None
            total += cost or 0
        return total


def load(path: str) -> Any:
    """What stands under `module:name`; the working folder is on the path.

    Raises:
        InputError: there is no such thing, or its module cannot be imported.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise InputError(f"{path!r}: expected module:name, as in app.chains:answer")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return resolve_name(path)
    except Exception as error:
        raise InputError(f"cannot load {path!r}: {type(error).__name__}: {error}") from error


def load_target(path: str) -> Runnable[Any, Any]:
    """A Runnable, or a function that becomes one: sync or async, of `inputs`.

    Raises:
        InputError: it is neither, or is not there.
    """
    found = load(path)
    if isinstance(found, Runnable):
        return found
    if not callable(found):
        raise InputError(f"{path!r} is {type(found).__name__}: expected a Runnable, or a function of inputs")
    return as_runnable(found)


def as_runnable(function: Callable[..., Any]) -> Runnable[Any, Any]:
    """A function, sync or async, as LangChain calls it."""
    return RunnableLambda(function)
