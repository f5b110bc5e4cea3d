"""What the API takes and answers, as OpenAPI 3.1, made from the routes and the types of their answers.

`python -m runtap_consumers.serve.openapi > docs/openapi.json` writes it anew after a change of these; a test proves
the file up to date.
"""

from __future__ import annotations

import inspect
import json
import sys
from typing import Any, get_type_hints

import msgspec

from runtap_consumers.serve.api import ANSWERS
from runtap_consumers.serve.guard import Refusal
from runtap_consumers.serve.query import PARAMETERS, Question


def make_document() -> dict[str, Any]:
    """The whole document."""
    shapes = [Refusal, *(get_type_hints(question.answer)["return"] for question in ANSWERS.values())]
    (refusal, *answers), schemas = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "runtap",
            "version": "1",
            "description": "Costs, performance, errors and sessions of LangChain runs, as `runtap serve` has them. "
            "Names carry units; money is exact decimal text; null is what is not known. Fields may be added.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        # Without a token none is asked for.
        "security": [{}, {"token": []}],
        "paths": {
            f"/api/v1/{path}": {"get": _operation(path, question, answer, refusal)}
            for (path, question), answer in zip(ANSWERS.items(), answers, strict=True)
        },
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(path: str, question: Question, answer: dict[str, Any], refusal: dict[str, Any]) -> dict[str, Any]:
    of_path = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}] if "{id}" in path else []
    of_query = [{"name": name, "in": "query", "schema": PARAMETERS[name]} for name in question.takes]
    refused = {"description": "Refused, with the reason.", "content": _json(refusal)}
    etag = {"ETag": {"description": "For If-None-Match, to ask again.", "schema": {"type": "string"}}}
    return {
        "operationId": path.replace("s/{id}", ""),
        "summary": inspect.getdoc(question.answer),
        "parameters": [*of_path, *of_query],
        "responses": {
            "200": {"description": "The answer.", "headers": etag, "content": _json(answer)},
            "304": {"description": "Nothing has changed since If-None-Match.", "headers": etag},
            "4XX": refused,
            "503": refused,
        },
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(make_document(), indent=1) + "\n")
