"""The OpenAPI document: FastAPI's own, plus the bodies that routes read and write by hand."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from serve.problems import MEDIA_TYPE
from serve.schemas import Problem

_PROBLEMS = {
    400: "The body is not valid JSON, or not a valid form.",
    401: "The API key is missing, wrong, or has expired.",
    403: "The server has no API keys, and answers to its own machine only.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body has too many bytes, or the photo too many pixels.",
    415: "The body has another type, or the image is not JPEG, PNG or WebP.",
    422: "A field is missing or cannot be used, the photo is damaged, or its base64 is.",
    429: "The API key asks more than it may. Try again after `Retry-After` seconds.",
    500: "The server failed.",
    503: "Too many requests are waiting, or the model restarts. Try again after `Retry-After` seconds.",
    504: "The answer took too long.",
}


def ref(model: type[BaseModel]) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}


def problem_responses(*left_out: int) -> dict[int | str, dict[str, Any]]:
    """What a route that answers questions can answer instead."""
    return {status: {"description": text, "content": {MEDIA_TYPE: ref(Problem)}} for status, text in _PROBLEMS.items()
            if status not in left_out}


def request_body(contents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`contents`: of each media type."""
    return {"requestBody": {"required": True, "content": contents}}


def query_parameters(model: type[BaseModel]) -> dict[str, Any]:
    """The fields of `model` as parameters of the query."""
    schema = model.model_json_schema()
    return {"parameters": [{"name": name, "in": "query", "required": False, "description": field.get("description", ""), "schema": field}
                           for name, field in schema["properties"].items()]}


def document_by_hand(api: FastAPI, *models: type[BaseModel]) -> None:
    """Let the document of `api` define `models` as well, which its routes refer to with `ref`."""
    by_hand: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "validation") for model in models]

    def openapi() -> dict[str, Any]:
        if not api.openapi_schema:
            document = get_openapi(title=api.title, version=api.version, summary=api.summary, routes=api.routes)
            _, schemas = models_json_schema(by_hand, ref_template="#/components/schemas/{model}")
            document["components"]["schemas"].update(schemas["$defs"])
            api.openapi_schema = document
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]
