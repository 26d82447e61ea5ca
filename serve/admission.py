"""How many requests come in at a time: those that the models can hold. Any other is told so at once, before its body is read."""

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.config import AppConfig
from serve.problems import ApiError, problem_response

RETRY_LATER = {"retry-after": "3"}


def overloaded() -> ApiError:
    """What a request hears for which there is no place."""
    return ApiError(503, "overloaded", "Too many requests are waiting; try again in a moment.", headers=RETRY_LATER)


class Admission:
    """Lets `max_requests` requests with a body in at a time.

    What waits does so in an engine. Requests above Ray Serve's own limits would wait in its proxy, or with their photo decoded in its
    router; both look for a place for each of them again and again, and the engine does not know its load.
    """

    def __init__(self, app: ASGIApp, config: AppConfig):
        self._app, self._num_running = app, 0
        self.max_requests = sum(each.max_ongoing_requests * each.autoscaling.max_replicas for each in config.models)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        if self._num_running >= self.max_requests:
            return await problem_response(scope, overloaded())(scope, receive, send)
        self._num_running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_running -= 1
