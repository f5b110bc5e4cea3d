"""The sample service: a shop's assistant, as an application would be written, with runtap attached.

It calls `ChatOpenAI` over HTTP through LCEL chains, a retrieval chain, streams, batches and a LangGraph agent with
tools, for several users in sessions of their own. Run as a process of its own:

    OPENAI_BASE_URL=http://127.0.0.1:8181/v1 OPENAI_API_KEY=none python -m runtap_demo.service --seed 7

It prints a JSON line after every session, and at the end one with what the emitter sent, still holds and dropped.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig, RunnablePassthrough
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from openai import OpenAIError
from pydantic import ConfigDict

from runtap_collector import RunTap

# Well above the longest answer of the model server (3 s), and short enough to be met in a demo.
_MODEL_TIMEOUT_SECONDS = 5.0
_CLOSE_TIMEOUT_SECONDS = 10.0
_SESSIONS_AT_ONCE = 12
_QUESTIONS_A_SESSION = (4, 6)

_QUESTIONS = (
    "Where is order {number}?",
    "I was charged twice for order {number}, please refund one.",
    "How long do I have to return the lamp of order {number}?",
    "Do you deliver to the islands, and what does it cost for order {number}?",
    "The screen of order {number} arrived broken. Who pays for sending it back?",
    "Is article {number} in stock in blue?",
    "Can I change the address of order {number} after it was packed?",
)
_POLICIES = {
    "returns": "Articles can be returned within thirty days of delivery, unused and in their box; the label is free.",
    "delivery": "Parcels leave the warehouse the day after payment; islands take three days more and cost a surcharge.",
    "payment": "A card is charged when a parcel leaves; a double charge is a reservation and lapses within a week.",
    "damage": "Broken articles are replaced at our cost when a picture reaches us within a week of the delivery.",
    "stock": "Stock is counted every night; colours that are out come back within a month as a rule.",
    "address": "An address can be changed until a parcel is packed; after that the carrier can be asked to hold it.",
}


class PolicyRetriever(BaseRetriever):
    """The shop's policies that share most words with a question."""

    model_config = ConfigDict(frozen=True)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        words = set(query.lower().split())
        ranked = sorted(_POLICIES.items(), key=lambda policy: -len(words & set(policy[1].lower().split())))
        # A policy's clauses are what makes a prompt as long as they are in practice.
        return [
            Document(
                "\n".join(f"{title}, clause {clause}. {text}" for clause in range(1, 16)), metadata={"title": title}
            )
            for title, text in ranked[:3]
        ]


@tool
def look_up_order(order_number: int) -> str:
    """Looks up where an order is."""
    return f"order {order_number} is with the carrier"


@tool
def check_stock(article: str) -> str:
    """Checks how many of an article are in stock."""
    return f"{len(article)} left"


@tool
def refund_charge(order_number: int) -> str:
    """Refunds what was charged for an order."""
    if order_number % 3 == 0:
        # LangGraph tells the model, which goes on.
        raise ValueError(f"order {order_number} was never paid")
    if order_number % 3 == 1:
        # Ends the agent.
        raise ConnectionError("the payment service refused the connection")
    return f"order {order_number} is refunded"


class Assistant:
    """The chains that answer customers, one method a way of asking."""

    def __init__(self, house_model: str) -> None:
        prompt = ChatPromptTemplate.from_messages(
            [("system", "You are the assistant of a shop. Answer briefly."), ("human", "{question}")]
        )
        classify = ChatPromptTemplate.from_template("Which team answers this, in one word? {question}")
        grounded = ChatPromptTemplate.from_messages(
            [("system", "Answer by these policies alone:\n{policies}"), ("human", "{question}")]
        )
        self._classify = (classify | _model("gpt-4o-mini", max_retries=0) | StrOutputParser()).with_config(
            run_name="classify_question"
        )
        self._retrieve = (
            {"policies": PolicyRetriever() | _join, "question": RunnablePassthrough()}
            | grounded
            | _model("gpt-4.1", max_retries=2)
            | StrOutputParser()
        ).with_config(run_name="answer_by_policy")
        self._think = (prompt | _model("o4-mini", max_retries=2, stream_usage=True) | StrOutputParser()).with_config(
            run_name="think_aloud"
        )
        self._talk = (
            prompt | _model("gpt-5-mini", max_retries=2, stream_usage=True, verbosity="high") | StrOutputParser()
        ).with_config(run_name="talk_at_length")
        # A part of the app that never asked for usage: its calls have no tokens, and are counted as unmetered.
        self._widget = (prompt | _model("gpt-4.1", max_retries=2, stream_usage=False)).with_config(
            run_name="old_widget"
        )
        self._tag = (
            ChatPromptTemplate.from_template("Three tags for: {review}") | _model(house_model, max_retries=1)
        ).with_config(run_name="tag_review")
        self._agent = _agent().with_config(run_name="order_agent")

    def ways(self) -> list[Callable[[str, RunnableConfig], Coroutine[Any, Any, None]]]:
        return [
            self.classify,
            self.answer_by_policy,
            self.answer_by_policy,
            self.think_aloud,
            self.hang_up_early,
            self.use_old_widget,
            self.tag_reviews,
            self.ask_agent,
            self.ask_agent,
            self.ask_agent,
        ]

    async def classify(self, question: str, config: RunnableConfig) -> None:
        # Synchronous code in a thread, as many services have it.
        await asyncio.to_thread(self._classify.invoke, {"question": question}, config)

    async def answer_by_policy(self, question: str, config: RunnableConfig) -> None:
        await self._retrieve.ainvoke(question, config)

    async def think_aloud(self, question: str, config: RunnableConfig) -> None:
        async for _ in self._think.astream({"question": question}, config):
            pass

    async def hang_up_early(self, question: str, config: RunnableConfig) -> None:
        stream = self._talk.astream({"question": question}, config)
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]

    async def use_old_widget(self, question: str, config: RunnableConfig) -> None:
        async for _ in self._widget.astream({"question": question}, config):
            pass

    async def tag_reviews(self, question: str, config: RunnableConfig) -> None:
        reviews = [{"review": f"{question} {stars} of 5 stars."} for stars in range(1, 5)]
        await self._tag.abatch(reviews, config, return_exceptions=True)

    async def ask_agent(self, question: str, config: RunnableConfig) -> None:
        messages = [SystemMessage("You look after orders."), HumanMessage(question)]
        await self._agent.ainvoke({"messages": messages}, config)


def _model(name: str, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(model=name, timeout=_MODEL_TIMEOUT_SECONDS, **options)


def _join(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


def _agent() -> Runnable[Any, Any]:
    """A LangGraph agent: the model calls tools until it has an answer."""
    tools = [look_up_order, check_stock, refund_charge]
    model = _model("gpt-5-mini", max_retries=2).bind_tools(tools)

    async def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("tools", ToolNode(tools, handle_tool_errors=(ValueError,)))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", tools_condition)
    graph.add_edge("tools", "think")
    return graph.compile()


async def hold_session(tap: RunTap, assistant: Assistant, seed: int, number: int, outcomes: Counter[str]) -> None:
    """One customer's questions, one after the other. Every second session is named by a block, the others in the
    metadata of each call: both ways are the user's to choose.
    """
    dice = random.Random(f"{seed}:{number}")
    session_id, user_id = f"s-{seed}-{number:02}", f"user-{dice.randrange(9)}"
    config: RunnableConfig = {"callbacks": [tap.handler], "tags": ["demo"]}
    if number % 2:
        config["metadata"] = {"session_id": session_id, "user_id": user_id, "channel": "web"}
        await _ask_questions(assistant, dice, config, outcomes)
        return
    with tap.session(session_id, user_id=user_id, tags=["app"], metadata={"channel": "app"}):
        await _ask_questions(assistant, dice, config, outcomes)


async def _ask_questions(
    assistant: Assistant, dice: random.Random, config: RunnableConfig, outcomes: Counter[str]
) -> None:
    for _ in range(dice.randint(*_QUESTIONS_A_SESSION)):
        question = dice.choice(_QUESTIONS).format(number=dice.randrange(100, 1_000))
        try:
            await dice.choice(assistant.ways())(question, config)
            outcomes["answered"] += 1
        except (OpenAIError, ConnectionError) as error:
            outcomes[type(error).__name__] += 1


async def serve_customers(seed: int, sessions: int, house_model: str) -> dict[str, Any]:
    """Holds all sessions, some at once, and closes the emitter.

    Args:
        seed: decides the customers and their questions.
        sessions: how many.
        house_model: a model that has no public price.

    Returns:
        How the questions ended, and what the emitter's `close` returned.
    """
    outcomes: Counter[str] = Counter()
    slots = asyncio.Semaphore(_SESSIONS_AT_ONCE)
    assistant = Assistant(house_model)
    held = 0

    async def hold(tap: RunTap, number: int) -> None:
        nonlocal held
        async with slots:
            await hold_session(tap, assistant, seed, number, outcomes)
        held += 1
        print(json.dumps({"sessions": held, "of": sessions, "questions": outcomes.total()}), flush=True)  # noqa: T201

    async with RunTap.from_env(service="checkout", environment="demo", error_messages=True) as tap:
        await asyncio.gather(*(hold(tap, number) for number in range(sessions)))
        closed = await tap.aclose(_CLOSE_TIMEOUT_SECONDS)
    return {"outcomes": dict(outcomes), "closed": dataclasses.asdict(closed)}


def main() -> None:
    """Serves all customers and ends."""
    parser = argparse.ArgumentParser(description="A sample service with runtap attached")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sessions", type=int, default=24)
    parser.add_argument("--house-model", default="house-model-7b")
    arguments = parser.parse_args()
    outcome = asyncio.run(serve_customers(arguments.seed, arguments.sessions, arguments.house_model))
    print(json.dumps(outcome), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
