"""The README's ways to attach, as the type checker of a user sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from langchain_core.runnables import Runnable
from langchain_openai import ChatOpenAI

import runtap_collector
from runtap_collector import Delivery, RunTap, RunTapHandler


async def attach_in_a_block(chain: Runnable[str, str], question: str) -> str:
    async with RunTap.from_env(service="checkout") as tap:
        return await chain.ainvoke(
            question,
            config={"callbacks": [tap.handler], "metadata": {"session_id": "s-1", "user_id": "u-7"}},
        )


def attach_without_a_block(chain: Runnable[str, str], question: str) -> Delivery:
    tap = RunTap.from_env()
    with tap.session("s-1", user_id="u-7", tags=["beta"], metadata={"team": "red"}):
        chain.invoke(question, config={"callbacks": [tap.handler]})
    tap.flush(timeout=1.0)
    return tap.close()


def attach_to_a_model() -> ChatOpenAI:
    return ChatOpenAI(callbacks=[RunTapHandler()])


def attach_to_everything(chain: Runnable[str, str], question: str) -> str:
    with runtap_collector.install():
        return chain.invoke(question)


def attach_with_settings() -> None:
    with RunTap.from_env(environment="production", metadata={"team": "red"}, capture_content=True, signals="off"):
        runtap_collector.install(service="checkout", bootstrap_servers="kafka-1:9092", spool_dir="off")
    # A misspelled setting, and a value of another type, are errors before the process starts.
    RunTap.from_env(sevice="checkout")  # type: ignore[call-arg]
    RunTap.from_env(buffer_bytes="lots")  # type: ignore[arg-type]
    runtap_collector.install(enviroment="production")  # type: ignore[call-arg]


def attach_to_fastapi(chain: Runnable[str, str]) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.tap = RunTap.from_env(service="checkout")
        yield
        await app.state.tap.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.get("/answer")
    async def answer(request: Request, question: str) -> str:
        return await chain.ainvoke(question, config={"callbacks": [request.app.state.tap.handler]})

    return app


def attach_to_fastapi_in_a_line() -> FastAPI:
    runtap_collector.install()
    app, llm = FastAPI(), ChatOpenAI(model="gpt-4.1-mini")

    @app.get("/answer")
    async def answer(question: str) -> str:
        return (await llm.ainvoke(question)).text

    return app
