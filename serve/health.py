"""`/livez`, `/healthz`: this process answers. `/readyz`: the model behind it did so lately, a question or a canary."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import FastAPI

from serve.config import AppConfig
from serve.limits import in_time
from serve.messages import Ask, Event, Model, build_canary
from serve.openapi import problem_responses
from serve.problems import ApiError, to_api_error
from serve.schemas import Health, Readiness, SegmentResponse

FRESH_S = 10.0  # so long one answer is proof; probes come about as often


class WatchedModel:
    """A Model that knows when it answered last, and asks a canary where that is long ago."""

    def __init__(self, model: Model, timeout_s: float):
        self._model, self._timeout_s = model, timeout_s
        self._last_answer_s = float("-inf")
        self._canary: asyncio.Task[None] | None = None

    async def ask(self, ask: Ask) -> AsyncGenerator[Event, None]:
        async with aclosing(self._model.ask(ask)) as events:
            async for event in events:
                if isinstance(event.news, SegmentResponse):
                    self._last_answer_s = time.monotonic()
                yield event

    async def seconds_since_answer(self) -> float:
        """At most `FRESH_S`. Raises what the canary raises.

        All who ask at a time wait for the same canary, and it goes on when they give up waiting: the next one finds its answer.
        """
        if time.monotonic() - self._last_answer_s > FRESH_S:
            if self._canary is None or self._canary.done():
                self._canary = asyncio.create_task(self._ask_canary())
            await asyncio.shield(self._canary)
        return time.monotonic() - self._last_answer_s

    async def _ask_canary(self) -> None:
        async for _ in in_time(self, build_canary(self._timeout_s)):
            pass


def add_health_routes(api: FastAPI, config: AppConfig, model: WatchedModel) -> None:
    """For those who start, stop and send traffic to this server."""
    health = Health(model=config.model_name)

    @api.get("/livez", summary="Whether this process answers")
    async def livez() -> Health:
        return health

    @api.get("/healthz", summary="The same, for those who look here")
    async def healthz() -> Health:
        return health

    @api.get("/readyz", summary="Whether the model answered lately", responses={503: problem_responses()[503]})
    async def readyz() -> Readiness:
        try:
            return Readiness(model=config.model_name, answered_s_ago=round(await model.seconds_since_answer(), 3))
        except Exception as error:
            raise ApiError(503, "not_ready", f"The model does not answer: {to_api_error(error)}", headers={"retry-after": "3"}) from None
