"""
Exceptions to statuses, categories and fingerprints.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import anthropic
import httpx
import openai
import pytest
from langchain_core.tools import ToolException
from langgraph.errors import GraphInterrupt, GraphRecursionError, ParentCommand
from langgraph.types import Command

from runtap_collector.failures import describe_error, status_of

_REQUEST = httpx.Request("POST", "http://127.0.0.1/")
_OPENAI_REQUEST: Any = _REQUEST


def _openai(kind: Any, code: int) -> Exception:
    error: Exception = kind("said so", response=httpx.Response(code, request=_REQUEST), body=None)
    return error


class _GatewayError(Exception):
    status_code = 429


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError(), "error"),
        (asyncio.CancelledError(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (KeyboardInterrupt(), "cancelled"),
        (GraphInterrupt(()), "interrupted"),
        (ParentCommand(Command()), "ok"),
        (GraphRecursionError(), "error"),
        (TimeoutError(), "error"),
    ],
)
def test_status_of_an_exception(error: BaseException, status: str) -> None:
    assert status_of(error) == status


@pytest.mark.parametrize(
    ("error", "category"),
    [
        (_openai(openai.RateLimitError, 429), "rate_limit"),
        (_openai(openai.AuthenticationError, 401), "auth"),
        (_openai(openai.PermissionDeniedError, 403), "auth"),
        (_openai(openai.BadRequestError, 400), "bad_request"),
        (_openai(openai.InternalServerError, 500), "other"),
        (openai.APITimeoutError(_OPENAI_REQUEST), "timeout"),
        (openai.APIConnectionError(request=_OPENAI_REQUEST), "connection"),
        (_openai(anthropic.RateLimitError, 429), "rate_limit"),
        (TimeoutError(), "timeout"),
        (ConnectionResetError(), "connection"),
        (httpx.ConnectError("refused"), "connection"),
        (httpx.ReadTimeout("slow"), "timeout"),
        (ToolException("no"), "tool"),
        (_GatewayError(), "rate_limit"),
        (ValueError("x"), "other"),
    ],
)
def test_category_of_an_exception(error: BaseException, category: str) -> None:
    assert describe_error(error, "llm", []).category == category


def _raised(message: str) -> BaseException:
    try:
        raise ValueError(message)
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("order 17 is late", "order 4711 is late"),
        (f"run {uuid.uuid4()} failed", f"run {uuid.uuid4()} failed"),
        ("no key 'a'", "no key 'b'"),
        ("at 0x7f01aa", "at 0x7f99bb"),
        ("see https://a.example/1", "see https://a.example/2"),
        ("request req_011CQab12cd", "request req_99ZZab34ef"),
    ],
)
def test_messages_that_differ_in_changing_parts_are_one_group(one: str, other: str) -> None:
    first, second = describe_error(_raised(one), "chain", []), describe_error(_raised(other), "chain", [])
    assert first.fingerprint == second.fingerprint
    assert (first.message, second.message) == (one, other)


def test_other_text_type_or_place_is_another_group() -> None:
    def elsewhere() -> BaseException:
        try:
            raise ValueError("late")
        except ValueError as error:
            return error

    errors = [_raised("late"), _raised("early"), elsewhere(), LookupError("late")]
    assert len({describe_error(error, "chain", []).fingerprint for error in errors}) == 4


def test_exception_that_cannot_describe_itself_still_counts() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    described = describe_error(MuteError(), "chain", [])
    assert (described.type, described.message) == ("MuteError", "")


def test_long_messages_and_lone_surrogates_fit_the_contract() -> None:
    described = describe_error(ValueError("\ud800" + "x" * 5_000), "chain", [])
    assert (len(described.message), described.message[0]) == (2_000, "?")
