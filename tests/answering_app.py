"""A web service whose every answer is a run, for tests of what is lost when its server is told to end.

`ANSWERING_APP_TAPS` says where it attaches: `import`, or in each `request`.
"""

from __future__ import annotations

import asyncio
import os

from fastapi import FastAPI
from langchain_core.runnables import RunnableConfig, RunnableLambda

import runtap_collector
from runtap_collector import RunTapHandler

# Requests that are still being served when the server is told to end.
SLOW_EVERY = 20
_SLOW_SECONDS = 0.3
_TAPS = os.environ["ANSWERING_APP_TAPS"]

if _TAPS == "import":
    runtap_collector.install()

_step: RunnableLambda[int, int] = RunnableLambda(lambda number: number, name="answer")


app = FastAPI()


@app.get("/{number}")
async def answer(number: int) -> int:
    """Answers with the number, which is metadata of the run."""
    await asyncio.sleep(0 if number % SLOW_EVERY else _SLOW_SECONDS)
    config: RunnableConfig = {"metadata": {"number": number}}
    if _TAPS == "request":
        config["callbacks"] = [RunTapHandler()]
    return await _step.ainvoke(number, config)
