"""`/livez`, `/healthz`: this process answers. `/readyz`: every model behind it did so lately, a question or a canary."""

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
    """A Model that knows when each model answered last, and asks a canary where that is long ago.

    `timeouts_s`: of each model's canary, by name; one that is not there is never asked, so that a probe does not start what is to rest.
    """

    def __init__(self, model: Model, timeouts_s: dict[str, float]):
        self._model, self._timeouts_s = model, timeouts_s
        self._last_answer_s = dict.fromkeys(timeouts_s, float("-inf"))
        self._canaries: dict[str, asyncio.Task[None]] = {}

    async def ask(self, ask: Ask) -> AsyncGenerator[Event, None]:
        async with aclosing(self._model.ask(ask)) as events:
            async for event in events:
                if isinstance(event.news, SegmentResponse):
                    self._last_answer_s[ask.model] = time.monotonic()
                yield event

    async def seconds_since_answer(self) -> float:
        """Of the model that answered longest ago: at most `FRESH_S`. Raises what its canary raises.

        All who ask at a time wait for the same canary, and it goes on when they give up waiting: the next one finds its answer.
        """
        for name in self._timeouts_s:
            if time.monotonic() - self._last_answer_s[name] > FRESH_S:
                if name not in self._canaries or self._canaries[name].done():
                    self._canaries[name] = asyncio.create_task(self._ask_canary(name))
                await asyncio.shield(self._canaries[name])
        return max((time.monotonic() - self._last_answer_s[name] for name in self._timeouts_s), default=0.0)

    async def _ask_canary(self, name: str) -> None:
        async for _ in in_time(self, build_canary(self._timeouts_s[name], name)):
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

    @api.get("/readyz", summary="Whether the models answered lately", responses={503: problem_responses()[503]})
    async def readyz() -> Readiness:
        try:
            return Readiness(model=config.model_name, answered_s_ago=round(await model.seconds_since_answer(), 3))
        except Exception as error:
            raise ApiError(503, "not_ready", f"The model does not answer: {to_api_error(error)}", headers={"retry-after": "3"}) from None
