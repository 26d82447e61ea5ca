"""`Idempotency-Key`: a request that comes again with the same key gets the answer that it had, and is computed once.

Each ingress replica remembers for itself, for a while, and answers only, so that what failed can be tried again. The same key with another
request is a mistake of the client and is told so.
"""

import asyncio
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.config import AppConfig
from serve.limits import receive as receive_limited
from serve.problems import ApiError, problem_response

HEADER, REPLAYED_HEADER = "idempotency-key", "idempotent-replayed"
KEPT_S = 600.0
MAX_BYTES = 64_000_000  # of remembered answers
_KEY = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(eq=False)
class _Remembered:
    """A request that runs or has run: `answer` is its messages, or None for one that failed or was left."""

    fingerprint: bytes
    started_s: float
    answer: "asyncio.Future[list[Message] | None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    num_bytes: int = 0


class Idempotency:
    """Remembers the answers to POST requests that carry a key; of each API key's name apart."""

    def __init__(self, app: ASGIApp, config: AppConfig, clock: Callable[[], float] = time.monotonic):
        self._app, self._config, self._clock = app, config, clock
        self._remembered: OrderedDict[tuple[str, str], _Remembered] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = Headers(scope=scope).get(HEADER) if scope["type"] == "http" and scope["method"] == "POST" else None
        if key is None:
            return await self._app(scope, receive, send)
        try:
            if not _KEY.fullmatch(key):
                raise ApiError(422, "idempotency_key_invalid", "Idempotency-Key has 1 to 128 visible ASCII characters.")
            body = await receive_limited(Request(scope, receive), self._config, Request.body)
            answer = await self._answer(scope, receive, send, key, body)
        except ApiError as error:
            return await problem_response(scope, error)(scope, receive, send)
        for message in answer:
            await send(message)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, key: str, body: bytes) -> list[Message]:
        """What is to be sent; nothing when this request was the first of its key and has been answered while it ran."""
        place, fingerprint = (scope["state"]["client"], key), _fingerprint(scope, body)
        while (known := self._remembered.get(place)) is not None and self._clock() - known.started_s < KEPT_S:
            if known.fingerprint != fingerprint:
                raise ApiError(422, "idempotency_key_reused", "Another request had this Idempotency-Key; take a new one for each request.")
            answer = await asyncio.shield(known.answer)
            if answer is not None:
                return _replayed(answer)
        mine = self._remembered[place] = _Remembered(fingerprint, self._clock())
        self._remembered.move_to_end(place)
        messages: list[Message] | None = None
        try:
            messages = await self._run(scope, receive, send, body)
        finally:
            if messages is None:
                self._forget(place, mine)
            else:
                mine.num_bytes = sum(len(message.get("body", b"")) for message in messages)
                self._forget_old()
            mine.answer.set_result(messages)
        return []

    async def _run(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> list[Message] | None:
        """Sends the answer; returns its messages if it is one to be given again."""
        messages: list[Message] = []
        is_read = False

        async def receive_body() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send_and_keep(message: Message) -> None:
            messages.append({**message, "headers": list(message["headers"])} if "headers" in message else message)
            await send(message)

        await self._app(scope, receive_body, send_and_keep)
        is_whole = bool(messages) and messages[0].get("status") == 200 and not messages[-1].get("more_body", False)
        return messages if is_whole and "problem" not in scope["state"] else None

    def _forget(self, place: tuple[str, str], mine: _Remembered) -> None:
        if self._remembered.get(place) is mine:
            del self._remembered[place]

    def _forget_old(self) -> None:
        """Answers beyond the time or the bytes, the oldest first."""
        num_bytes = sum(each.num_bytes for each in self._remembered.values())
        for place, each in list(self._remembered.items()):
            if each.answer.done() and (self._clock() - each.started_s >= KEPT_S or num_bytes > MAX_BYTES):
                num_bytes -= each.num_bytes
                del self._remembered[place]


def _fingerprint(scope: Scope, body: bytes) -> bytes:
    kind = Headers(scope=scope).get("content-type", "")
    head = repr((scope["path"], scope.get("query_string", b""), kind)).encode()
    return hashlib.sha256(len(head).to_bytes(8) + head + body).digest()


def _replayed(messages: list[Message]) -> list[Message]:
    start = {**messages[0], "headers": list(messages[0]["headers"])}
    MutableHeaders(scope=start)[REPLAYED_HEADER] = "true"
    return [start, *messages[1:]]
