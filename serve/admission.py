"""Admission control: requests with a body come in while the models can hold them. Any other is refused at once, its body unread."""

import time
from collections import Counter
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.config import AppConfig
from serve.problems import ApiError, problem_response

RETRY_LATER = {"retry-after": "3"}
ACTIVE_S = 10.0  # an API key counts as one that asks for so long after its last request, admitted or refused


def overloaded() -> ApiError:
    """The 503 returned when the server is full."""
    return ApiError(503, "overloaded", "Too many requests are waiting; try again in a moment.", headers=RETRY_LATER)


class Admission:
    """Lets `max_requests` requests with a body in at a time, shared among the API keys that ask, and photos of `max_pixels` in all.

    What waits does so in an engine. Requests above Ray Serve's own limits would wait in its proxy, or with their photo decoded in its
    router; both look for a place for each of them again and again, and the engine does not know its load.
    """

    def __init__(self, app: ASGIApp, config: AppConfig, clock: Callable[[], float] = time.monotonic):
        self._app, self._clock = app, clock
        self.max_requests = sum(each.max_ongoing_requests * each.autoscaling.max_replicas for each in config.models)
        # With several keys a quarter of the places stays free for one that has not asked lately.
        self._max_of_lone_key = self.max_requests - (self.max_requests // 4 if len(config.api_keys) > 1 else 0)
        self._num_running: Counter[str] = Counter()
        self._asked_s: dict[str, float] = {}
        self._pixels = PixelBudget(int(config.max_megapixels_in_flight * 1_000_000))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        client: str = scope["state"]["client"]
        self._asked_s[client] = self._clock()
        if self._num_running.total() >= self.max_requests or self._num_running[client] >= self._share():
            return await problem_response(scope, overloaded())(scope, receive, send)
        self._num_running[client] += 1
        scope["state"]["photo_place"] = place = PhotoPlace(self._pixels)
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_running[client] -= 1
            place.leave()

    def _share(self) -> int:
        """Places of one key: all but the reserve while it asks alone, else equal parts for those that ask."""
        now_s = self._clock()
        num_active = sum(now_s - asked_s < ACTIVE_S or self._num_running[client] > 0 for client, asked_s in self._asked_s.items())
        return self._max_of_lone_key if num_active <= 1 else max(1, self.max_requests // num_active)


class PixelBudget:
    """Pixels of all photos that requests hold decoded: 3 bytes each, and again as much while they are decoded or sent on."""

    def __init__(self, max_pixels: int):
        self.max_pixels, self.num_pixels = max_pixels, 0


class PhotoPlace:
    """The share of one request in the budget: the largest of its photos, which it answers one after the other."""

    def __init__(self, budget: PixelBudget):
        self._budget, self._num_pixels = budget, 0

    def enter(self, num_pixels: int) -> None:
        """Raise the 503 of a full server where the photo would be one too many; a photo alone always has its place."""
        more = max(num_pixels - self._num_pixels, 0)
        if self._budget.num_pixels and self._budget.num_pixels + more > self._budget.max_pixels:
            raise overloaded()
        self._num_pixels += more
        self._budget.num_pixels += more

    def leave(self) -> None:
        """Give all of it back."""
        self._budget.num_pixels -= self._num_pixels
        self._num_pixels = 0
