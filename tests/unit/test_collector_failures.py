"""Exceptions to statuses, categories and fingerprints."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import anthropic
import httpx
import msgspec
import openai
import pytest
from langchain_core.tools import ToolException
from langgraph.errors import GraphInterrupt, GraphRecursionError, ParentCommand
from langgraph.types import Command

from runtap_collector.capture.failures import describe_error, status_of

_REQUEST = httpx.Request("POST", "http://127.0.0.1/")
_OPENAI_REQUEST: Any = _REQUEST


def _openai(kind: Any, status_code: int, body: Any = None) -> Exception:
    error: Exception = kind("said so", response=httpx.Response(status_code, request=_REQUEST), body=body)
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
        (_openai(openai.InternalServerError, 500), "server"),
        (_openai(openai.APIStatusError, 529), "server"),
        (_openai(openai.APIStatusError, 418), "other"),
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
        ("run 1cdc2b96-7091-422c-9475-acb909ffb43f failed", "run da4c9e52-eec4-41ae-8c59-9e015a28b7aa failed"),
        ("no key 'a'", "no key 'b'"),
        ("at 0x7f01aa", "at 0x7f99bb"),
        ("see https://a.example/1", "see https://a.example/2"),
        ("request req_011CQab12cd", "request req_99ZZab34ef"),
    ],
)
def test_messages_that_differ_in_changing_parts_are_one_group(one: str, other: str) -> None:
    first, second = (describe_error(_raised(text), "chain", [], keeps_message=True) for text in (one, other))
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

    described = describe_error(MuteError(), "chain", [], keeps_message=True)
    assert (described.type, described.message) == ("MuteError", "")


def test_long_messages_and_lone_surrogates_fit_the_contract() -> None:
    described = describe_error(ValueError("\ud800" + "x" * 5_000), "chain", [], keeps_message=True)
    assert described.message == "?" + "x" * 1_999


class _BotoError(Exception):
    """As botocore's ClientError has it."""

    response: ClassVar = {"Error": {"Code": "ThrottlingException"}, "ResponseMetadata": {"HTTPStatusCode": 400}}


class _ApiCoreError(Exception):
    """As google-api-core's errors have it: `code` is HTTP's."""

    code = 503


class _OddError(Exception):
    """What could be mistaken for facts and is none."""

    status_code = True
    status = "503"
    code = "a sentence of what a person wrote"
    body: ClassVar = {"error": {"code": "x" * 65, "type": "not\none\nword"}}


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (_openai(openai.RateLimitError, 429, {"code": "rate_limit_exceeded"}), (429, "rate_limit_exceeded")),
        (_openai(anthropic.RateLimitError, 429, {"error": {"type": "rate_limit_error"}}), (429, "rate_limit_error")),
        (httpx.HTTPStatusError("m", request=_REQUEST, response=httpx.Response(502, request=_REQUEST)), (502, None)),
        (_BotoError(), (400, "ThrottlingException")),
        (_ApiCoreError(), (503, None)),
        (_OddError(), (None, None)),
    ],
)
def test_http_status_and_the_providers_code_of_an_exception(
    error: BaseException, facts: tuple[int | None, str | None]
) -> None:
    described = describe_error(error, "llm", [])
    assert (described.status_code, described.code) == facts


def test_where_an_error_was_raised_is_told_by_function_and_line_and_its_message_only_when_asked_for() -> None:
    error = _raised("secret")
    described = describe_error(error, "chain", [])
    assert error.__traceback__ is not None
    assert described.raised_at == f"{__name__}._raised:{error.__traceback__.tb_lineno}"
    assert described.message is None
    passed_on = describe_error(error, "chain", [(error, described)])
    assert passed_on == msgspec.structs.replace(described, origin=False)


def test_code_that_came_from_no_file_does_not_say_where() -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        exec("def written_by_a_model():\n    raise ValueError\nwritten_by_a_model()", {})
    where = describe_error(caught.value, "tool", []).raised_at
    assert where is not None
    assert where.startswith(f"{__name__}.test_code_that_came_from_no_file_does_not_say_where:")
