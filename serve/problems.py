"""Every failure of a request as one kind of body: RFC 9457 problem+json that also carries OpenAI's `error` object."""

import logging
import re
import time
import traceback
import uuid
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pixellm.errors import DeadlineError, InputError, ModelError, PixelLMError
from serve.schemas import OpenAIError, Problem

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
REQUEST_ID_HEADER = "x-request-id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_STATUS_OF_INPUT_ERROR = {"photo_format": 415, "photo_too_large": 413}


class ApiError(PixelLMError):
    """A request that is answered with `status`. `code` is a stable slug, `param` the field of the request that is to blame."""

    def __init__(self, status: int, code: str, detail: str, param: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(status, code, detail, param, headers)
        self.status, self.code, self.detail, self.param, self.headers = status, code, detail, param, headers

    def __str__(self) -> str:
        return self.detail


def to_api_error(error: Exception) -> ApiError:
    """How a failure is told to who asked: what the caller may know, and of anything else nothing."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):
        field, invalid, _ = error.code.partition("_invalid")
        param = (field if invalid else field.partition("_")[0]).replace("photo", "image").replace("prompt", "question")
        return ApiError(_STATUS_OF_INPUT_ERROR.get(error.code, 422), error.code, error.detail, param)
    if isinstance(error, DeadlineError):
        return ApiError(504, "answer_timeout", str(error))
    if isinstance(error, RequestValidationError):  # FastAPI's own, for parameters of the path and the query
        problem = error.errors()[0]
        name, kind = str(problem["loc"][-1]), "missing" if problem["type"] == "missing" else "invalid"
        return ApiError(422, f"{name}_{kind}", f"The parameter {name}: {problem['msg']}.", name)
    if isinstance(error, HTTPException):  # Starlette's own: no such path, wrong method
        code, headers = HTTPStatus(error.status_code).name.lower(), dict(error.headers) if error.headers else None
        return ApiError(error.status_code, code, str(error.detail), headers=headers)
    if isinstance(error, ModelError):
        return ApiError(500, "model_failed", "The model failed on this request. Try again; if it stays, report the request_id.")
    return ApiError(500, "internal_error", "The server failed on this request. Try again; if it stays, report the request_id.")


def to_problem(request_id: str, error: ApiError) -> Problem:
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return Problem(title=HTTPStatus(error.status).phrase, status=error.status, detail=error.detail, code=error.code, request_id=request_id,
                   error=OpenAIError(message=error.detail, type=kind, param=error.param, code=error.code))


def problem_response(scope: Scope, error: ApiError) -> JSONResponse:
    """The answer to the request of `scope`, whose state then says which problem it had."""
    scope["state"]["problem"] = error.code
    problem = to_problem(scope["state"]["request_id"], error)
    return JSONResponse(problem.model_dump(), status_code=error.status, headers=error.headers, media_type=MEDIA_TYPE)


def install_error_handlers(api: FastAPI) -> None:
    """Answer the errors that `to_api_error` knows with a problem; RequestGuard answers the others."""

    async def on_error(request: Request, error: Exception) -> JSONResponse:
        return problem_response(request.scope, to_api_error(error))

    for known in (ApiError, InputError, DeadlineError, ModelError, RequestValidationError, HTTPException):
        api.add_exception_handler(known, on_error)


def log_failure(request_id: str, error: Exception) -> None:
    """An unforeseen error's type and stack; not its message, which can quote a question."""
    if to_api_error(error).code == "internal_error":
        stack = "".join(traceback.format_tb(error.__traceback__))
        logger.error("request %s failed with %s\n%s", request_id, type(error).__name__, stack)


class RequestGuard:
    """Outermost layer: gives a request its id, and turns an unforeseen exception into a 500 without internals.

    The id is the client's `x-request-id` if that is short and plain, else a new one. `echo_id` puts it into the answer; it is off
    behind Ray Serve's proxy, which does so itself.
    """

    def __init__(self, app: ASGIApp, echo_id: bool = True):
        self._app, self._echo_id = app, echo_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, arrived_s=time.monotonic())
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if self._echo_id:
                    MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            log_failure(request_id, error)
            if started:
                raise RuntimeError(f"request {request_id} failed after its answer had begun") from None
            await problem_response(scope, to_api_error(error))(scope, receive, send_with_id)
