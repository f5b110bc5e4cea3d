"""A service with a secret in every place of its runs, each of which fails or ends with it in its hands.

    python leaky_service.py SECRET MODEL_PORT

Its settings come from the environment. It prints the names of the places.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun, dispatch_custom_event
from langchain_core.documents import Document
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import ToolException, tool
from langchain_openai import ChatOpenAI
from langgraph.errors import GraphInterrupt
from langgraph.types import Interrupt
from pydantic import BaseModel, Field, SecretStr

from runtap_collector import RunTap

SECRET, PORT = sys.argv[1], sys.argv[2]


class Order(BaseModel):
    """An order."""

    number: int = Field(gt=0)


class Library(BaseRetriever):
    """Finds a document, or fails with it."""

    fails: bool = False

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        run_manager.on_text(SECRET)
        if self.fails:
            raise LookupError(f"broken page: {SECRET}")
        return [Document(SECRET, metadata={"source": SECRET})]


@tool
def find(number: int, why: str) -> str:
    """Finds an order."""
    if number < 0:
        raise ToolException(f"no order {number}: {why}")
    return SECRET


def model(**options: Any) -> ChatOpenAI:
    """A model whose server answers with the secret, or refuses with it, as the question says."""
    return ChatOpenAI(
        model="gpt-4o-mini",
        api_key=SecretStr(SECRET.replace(" ", "-")),
        max_retries=0,
        base_url=f"http://127.0.0.1:{PORT}/v1",
        default_headers={"x-note": SECRET},
        **options,
    )


def fail(error: BaseException) -> Callable[[Any], Any]:
    """A step that raises."""

    def step(_: Any) -> Any:
        raise error

    return step


def exec_step(_: Any) -> Any:
    """Code that a model wrote, with the secret in its names."""
    exec(f"def {SECRET.replace(' ', '_')}():\n    raise ValueError(1)\n{SECRET.replace(' ', '_')}()", {})


def with_cause(_: Any) -> Any:
    """An error with a cause, a context and notes."""
    try:
        raise ValueError(SECRET)
    except ValueError as cause:
        error = RuntimeError(SECRET)
        error.add_note(SECRET)
        raise error from cause


def notify(_: Any) -> None:
    """A custom event."""
    dispatch_custom_event("step", {"x": SECRET})


class CodeError(Exception):
    """An SDK's error with a whole sentence where others have a code, and a body that cannot be read."""

    code = SECRET
    status_code = 418

    @property
    def body(self) -> Any:
        raise RuntimeError(SECRET)


def ask(question: str) -> list[HumanMessage]:
    """A question with the secret; its first word tells the server what to do."""
    return [HumanMessage(f"{question} {SECRET}")]


RUNS: dict[str, Callable[[RunnableConfig], Any]] = {
    "answer": lambda config: model().invoke(ask("answer"), config),
    "stream": lambda config: list(model(stream_usage=True).stream(ask("stream"), config)),
    "provider_error": lambda config: model().invoke(ask("refuse"), config),
    "kwargs": lambda config: model(model_kwargs={"user": SECRET}).bind(stop=[SECRET]).invoke(ask("answer"), config),
    "unreachable": lambda config: ChatOpenAI(
        model="gpt-4o-mini",
        api_key=SecretStr("k"),
        max_retries=0,
        base_url=f"http://user:{SECRET.replace(' ', '-')}@127.0.0.1:1/v1",
    ).invoke(ask("answer"), config),
    "prompt": lambda config: ChatPromptTemplate.from_messages([("human", f"{SECRET} {{missing}}")]).invoke({}, config),
    "json_parser": lambda config: (model() | JsonOutputParser()).invoke(ask("answer"), config),
    "pydantic_parser": lambda config: (model() | PydanticOutputParser(pydantic_object=Order)).invoke(
        ask("answer"), config
    ),
    "parser": lambda config: RunnableLambda(fail(OutputParserException(SECRET, llm_output=SECRET))).invoke(1, config),
    "tool_result": lambda config: find.invoke({"number": 1, "why": SECRET}, config),
    "tool_arguments": lambda config: find.invoke({"number": SECRET, "why": SECRET}, config),
    "tool_error": lambda config: find.invoke({"number": -1, "why": SECRET}, config),
    "documents": lambda config: Library().invoke(SECRET, config),
    "retriever_error": lambda config: Library(fails=True).invoke(SECRET, config),
    "cause_and_notes": lambda config: RunnableLambda(with_cause).invoke(SECRET, config),
    "group": lambda config: RunnableLambda(fail(ExceptionGroup(SECRET, [ValueError(SECRET)]))).invoke(SECRET, config),
    "code": lambda config: RunnableLambda(fail(CodeError(SECRET))).invoke(SECRET, config),
    "written_code": lambda config: RunnableLambda(exec_step).invoke(SECRET, config),
    "interrupt": lambda config: RunnableLambda(fail(GraphInterrupt((Interrupt(SECRET),)))).invoke(SECRET, config),
    "custom_event": lambda config: RunnableLambda(notify).invoke(SECRET, config),
    "retry": lambda config: (
        RunnableLambda(fail(ValueError(SECRET)))
        .with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
        .invoke(SECRET, config)
    ),
}

with RunTap.from_env(service="leaky") as tap:
    for place, run in RUNS.items():
        with contextlib.suppress(Exception):
            run({"callbacks": [tap.handler], "run_name": place})
print(*RUNS)  # noqa: T201
