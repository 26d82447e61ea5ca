"""An application that takes its time, for Serve's REST API to build: six answers at a time, a second and a half each."""

import asyncio
from typing import Any

from ray.serve import Application

from serve.app import build_application
from serve.config import AppConfig
from tests.serve.doubles import RuleSegmenter

NUM_AT_A_TIME, ANSWER_S = 6, 1.5


class SlowSegmenter(RuleSegmenter):
    """Answers like RuleSegmenter, as late as an engine whose slots are taken."""

    def __init__(self) -> None:
        super().__init__()
        self._slots = asyncio.Semaphore(NUM_AT_A_TIME)

    async def answer_async(self, photo, question, max_new_tokens=128, options=None, with_parts=True):
        async with self._slots:
            await asyncio.sleep(ANSWER_S)
        async for part in super().answer_async(photo, question, max_new_tokens, options, with_parts):
            yield part


def build(config: Any) -> SlowSegmenter:
    """A segmenter factory."""
    return SlowSegmenter()


def build_slow_app(args: dict[str, Any]) -> Application:
    """The application that `import_path` names."""
    return build_application(AppConfig(**args), build)
