"""
A service under the chaos test: real collector, a model that answers as it is told. What comes is written down before.

    python emitter.py BOOK_FILE SERVICE SEED OPERATIONS OPERATIONS_A_SECOND
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.tools import ToolException, tool

from runtap_collector import RunTap

MODELS = {
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "house-model-7b": "house-model-7b",
}
_OPERATIONS_A_SESSION = 25
_CLOSE_SECONDS = 150.0


class ToldModel(BaseChatModel):
    """
    Its prompt says what it uses.
    """

    model: str

    @property
    def _llm_type(self) -> str:
        return "told"

    def _get_ls_params(self, stop: list[str] | None = None, **_: Any) -> Any:
        return {"ls_provider": "openai", "ls_model_name": self.model, "ls_model_type": "chat"}

    def _generate(self, messages: Sequence[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        told = json.loads(str(messages[-1].content))
        usage: Any = {
            "input_tokens": told["input"],
            "output_tokens": told["output"],
            "total_tokens": told["input"] + told["output"],
            "input_token_details": {"cache_read": told["cached"]},
        }
        message = AIMessage("so be it", usage_metadata=usage, response_metadata={"model_name": MODELS[self.model]})
        return ChatResult(generations=[ChatGeneration(message=message)])


@tool
def lookup(order: int) -> str:
    """Looks up an order; there is none below 0."""
    if order < 0:
        raise ToolException("no such order")
    return "sent"


class Service:
    """
    Operations, and the book about them.
    """

    def __init__(self, tap: RunTap, book: TextIO, service: str, dice: random.Random) -> None:
        self._tap, self._book, self._service, self._dice = tap, book, service, dice
        self._models: dict[str, Runnable[Any, Any]] = {
            name: ToldModel(model=name).with_config(run_name="ask") for name in MODELS
        }
        self._plan: Runnable[str, str] = RunnableLambda(lambda text: text, name="plan")

    def _write(self, **line: Any) -> None:
        self._book.write(json.dumps({"service": self._service, **line}) + "\n")
        # What is not in the file must not be in Kafka; what is there and not in Kafka, the kernel still has.
        self._book.flush()

    def run_session(self, number: int, operations: int) -> None:
        """
        A session of some operations.
        """
        who = {"session": f"{self._service}-{number}", "user": f"u-{number % 40}"}
        self._write(event="session", **who)
        with self._tap.session(who["session"], user_id=who["user"]):
            for _ in range(operations):
                yield_to_pace()
                self._run_one(who)

    def _run_one(self, who: dict[str, str]) -> None:
        choice, config = self._dice.random(), RunnableConfig(callbacks=[self._tap.handler])
        if choice < 0.15:
            order = self._dice.choice((7, 7, -7))
            run = {"type": "tool", "name": "lookup", "status": "ok" if order > 0 else "error"}
            self._write(event="root", runs=[run], **who)
            try:
                lookup.invoke({"order": order}, config)
            except ToolException:
                pass
            return
        name = self._dice.choice(tuple(MODELS))
        told = {"input": self._dice.randint(20, 4_000), "output": self._dice.randint(1, 900), "cached": 0}
        if choice < 0.4:
            told["cached"] = self._dice.randrange(told["input"])
        call = {"type": "llm", "name": "ask", "status": "ok", "model": MODELS[name], **told}
        if choice < 0.75:
            self._write(event="root", runs=[call], **who)
            self._models[name].invoke(json.dumps(told), config)
            return
        steps = [{"type": "chain", "name": step, "status": "ok"} for step in ("answer", "plan")]
        self._write(event="root", runs=[*steps, call], **who)
        (self._plan | self._models[name]).with_config(run_name="answer").invoke(json.dumps(told), config)


_pace = {"began": 0.0, "done": 0.0, "rate": 1.0}


def yield_to_pace() -> None:
    """
    Sleeps where this process is ahead of its rate; after a stop it catches up.
    """
    _pace["done"] += 1
    ahead = _pace["began"] + _pace["done"] / _pace["rate"] - time.monotonic()
    if ahead > 0.02:
        time.sleep(ahead)


def main() -> None:
    """
    Runs all operations and closes.
    """
    path, service, seed, operations, rate = sys.argv[1:]
    _pace.update(began=time.monotonic(), rate=float(rate))
    with Path(path).open("w") as book:
        tap = RunTap.from_env(service=service)
        worked = Service(tap, book, service, random.Random(f"{seed}:{service}"))
        for number in range(int(operations) // _OPERATIONS_A_SESSION):
            worked.run_session(number, _OPERATIONS_A_SESSION)
        delivery = tap.close(_CLOSE_SECONDS)
        stats = tap.stats()
        closed = {"sent": delivery.sent, "waiting": delivery.waiting, "dropped": delivery.dropped}
        line = {**closed, "captured": stats.captured, "superseded": stats.superseded}
        book.write(json.dumps({"service": service, "event": "closed", **line}) + "\n")


if __name__ == "__main__":
    main()
