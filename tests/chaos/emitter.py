"""A service under the chaos test: real collector, a model that answers as it is told. What comes is written down
before.

    python emitter.py BOOK_FILE SERVICE SEED OPERATIONS OPERATIONS_A_SECOND [--asks URL]

The book has a line an event, [service, session, user, kind, name, model, status, input, cached, output, is_root], and
marks: `begun`; `safe`, where all before it is in Kafka or in the spool; `closed`. With `--asks` a real ChatOpenAI asks
the model server there, which alone decides what is used, and writes that down itself.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.tools import ToolException, tool
from langchain_openai import ChatOpenAI

from runtap_collector import RunTap

MODELS = {
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "house-model-7b": "house-model-7b",
}
_OPERATIONS_A_SESSION = 25
_SAFE_EVERY_SESSIONS = 4
_FLUSH_SECONDS = 2.0
_CLOSE_SECONDS = 150.0


class ToldModel(BaseChatModel):
    """Its prompt says what it uses."""

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
    """Operations, and the book about them."""

    def __init__(self, tap: RunTap, book: TextIO, service: str, dice: random.Random, asks: str | None) -> None:
        self._tap, self._book, self._service, self._dice = tap, book, service, dice
        self._models: dict[str, Runnable[Any, Any]] = {
            name: ToldModel(model=name).with_config(run_name="ask") for name in MODELS
        }
        if asks:
            told: dict[str, Any] = {
                "base_url": asks,
                "api_key": "none",
                "timeout": 60,
                "max_retries": 0,
                "stream_usage": True,
            }
            self._models = {name: ChatOpenAI(model=name, **told).with_config(run_name="ask") for name in MODELS}
        self._run_one = self._ask if asks else self._run_told
        self._plan: Runnable[str, str] = RunnableLambda(lambda text: text, name="plan")
        self._session = self._user = ""

    def mark(self, mark: str, **more: Any) -> None:
        """Notes where things stand."""
        self._write([{"mark": mark, **more}])

    def _write(self, entries: Sequence[Any]) -> None:
        self._book.write("".join(json.dumps(entry) + "\n" for entry in entries))
        # What is not in the file must not be in Kafka; what is there and not in Kafka, the kernel still has.
        self._book.flush()

    def _fact(self, kind: str, name: str = "", status: str = "", is_root: bool = False, **call: Any) -> list[Any]:
        used = [call.get("model", ""), status, *(call.get(part, 0) for part in ("input", "cached", "output"))]
        return [self._service, self._session, self._user, kind, name, *used, is_root]

    def run_session(self, name: str, number: int) -> None:
        """A session of some operations."""
        self._session, self._user = name, f"u-{number % 40}"
        self._write([self._fact("session.started"), self._fact("session.ended")])
        with self._tap.session(self._session, user_id=self._user):
            for _ in range(_OPERATIONS_A_SESSION):
                yield_to_pace()
                self._run_one(RunnableConfig(callbacks=[self._tap.handler]))
        if number % _SAFE_EVERY_SESSIONS == 0 and self._tap.flush(_FLUSH_SECONDS).waiting == 0:
            self.mark("safe")

    def _ask(self, config: RunnableConfig) -> None:
        model, question = self._models[self._dice.choice(tuple(MODELS))], f"session={self._session} do=answer"
        if self._dice.random() < 0.2:
            for _ in model.stream(question, config):
                pass
        else:
            model.invoke(question, config)

    def _run_told(self, config: RunnableConfig) -> None:
        choice = self._dice.random()
        if choice < 0.15:
            order = self._dice.choice((7, 7, -7))
            self._write([self._fact("tool", "lookup", "ok" if order > 0 else "error", is_root=True)])
            try:
                lookup.invoke({"order": order}, config)
            except ToolException:
                pass
            return
        name = self._dice.choice(tuple(MODELS))
        told: dict[str, Any] = {
            "input": self._dice.randint(20, 4_000),
            "output": self._dice.randint(1, 900),
            "cached": 0,
        }
        if choice < 0.4:
            told["cached"] = self._dice.randrange(told["input"])
        call: dict[str, Any] = {"name": "ask", "status": "ok", "model": MODELS[name], **told}
        if choice < 0.75:
            self._write([self._fact("llm", is_root=True, **call)])
            self._models[name].invoke(json.dumps(told), config)
            return
        steps = (self._fact("chain", "answer", "ok", is_root=True), self._fact("chain", "plan", "ok"))
        self._write([*steps, self._fact("llm", **call)])
        (self._plan | self._models[name]).with_config(run_name="answer").invoke(json.dumps(told), config)


_pace = {"began": 0.0, "done": 0.0, "rate": 1.0}


def yield_to_pace() -> None:
    """Sleeps where this process is ahead of its rate; after a stop it catches up."""
    _pace["done"] += 1
    ahead = _pace["began"] + _pace["done"] / _pace["rate"] - time.monotonic()
    if ahead > 0.02:
        time.sleep(ahead)


def main() -> None:
    """Runs all operations and closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (("book", Path), ("service", str), ("seed", int), ("operations", int), ("rate", float)):
        parser.add_argument(name, type=kind)
    parser.add_argument("--asks")
    told = parser.parse_args()
    _pace.update(began=time.monotonic(), rate=told.rate)
    lives = told.book.read_text().count('"begun"') if told.book.exists() else 0
    with told.book.open("a") as book:
        tap = RunTap.from_env(service=told.service)
        worked = Service(tap, book, told.service, random.Random(f"{told.seed}:{told.service}:{lives}"), told.asks)
        worked.mark("begun")
        for number in range(max(1, told.operations // _OPERATIONS_A_SESSION)):
            worked.run_session(f"{told.service}.{lives}-{number}", number)
        delivery = tap.close(_CLOSE_SECONDS)
        worked.mark("closed", waiting=delivery.waiting + delivery.spooled, dropped=sum(delivery.dropped.values()))


if __name__ == "__main__":
    main()
