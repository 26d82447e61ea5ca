"""A segmenter that answers by rule, so that tests can see how it is asked and make chosen questions fail."""

import asyncio
import contextlib

import httpx
import numpy as np

from pixellm.errors import DeadlineError, InputError
from pixellm.inference.load import EngineLoad
from pixellm.inference.segmentation import Segmentation, Target, TextDelta
from pixellm.masks import mask_to_rle, rle_area, rle_box_xywh
from serve.model_config import ModelConfig
from serve.replica import ModelReplica


class RuleSegmenter:
    """Finds "the left half" of any photo, in parts with a turn of the event loop after each.

    A question with "poison" raises RuntimeError, one with "refuse" InputError, one with "late" DeadlineError, "none" is answered without a
    mask, "wait" never ends, "count" tells how many questions are open. `asked` holds (question, max_new_tokens, options) of each call,
    `left` the questions that were given up.
    """

    def __init__(self):
        self.asked, self.left = [], []
        self.num_running = 0

    @property
    def load(self):
        return EngineLoad(num_slots=4, num_running=self.num_running, running_cost=self.num_running)

    def prepare_photo(self, image):
        return image

    async def answer_async(self, photo, question, max_new_tokens=128, options=None, with_parts=True):
        self.asked.append((question, max_new_tokens, options))
        self.num_running += 1
        try:
            answer = self._answer(photo, question)
            if with_parts:
                for part in [*(TextDelta(text) for text in answer.text.split("|")), *answer.targets]:
                    yield part
                    await asyncio.sleep(0)
            if "wait" in question:
                await asyncio.sleep(600)
        except (asyncio.CancelledError, GeneratorExit):
            self.left.append(question)
            raise
        finally:
            self.num_running -= 1
        yield answer

    def _answer(self, image, question):
        if "poison" in question:
            raise RuntimeError(f"cannot answer {question}")
        if "refuse" in question:
            raise InputError("photo_unreadable", "the photo is refused")
        if "late" in question:
            raise DeadlineError("the answer was not complete in time")
        if "none" in question or "count" in question:
            text = "Nothing is there." if "none" in question else f"{self.num_running} are open, {len(self.left)} were left."
            return Segmentation(text, text, [], "stop", 4, (image.height, image.width))
        mask = np.zeros((image.height, image.width), dtype=bool)
        mask[:, :image.width // 2] = True
        rle = mask_to_rle(mask)
        target = Target("the left half", (6, 19), rle, 0.87654321, rle_box_xywh(rle), rle_area(rle))
        text = "It is the left half."
        return Segmentation(text, text.replace("half", "half {seg}"), [target], "stop", 9, (image.height, image.width))


def build_rule_segmenter(config):
    """A segmenter factory for `serve.app.build_application`."""
    return RuleSegmenter()


class RuleModel:
    """A Model for `build_api`: a replica in this process, with `segmenter` in place of a real one."""

    def __init__(self, segmenter=None):
        self.segmenter, self.asks = segmenter or RuleSegmenter(), []
        self._replica = ModelReplica(ModelConfig(model="models/test"), lambda config: self.segmenter)

    async def ask(self, ask):
        self.asks.append(ask)
        async with contextlib.aclosing(self._replica.ask(ask)) as events:
            async for event in events:
                if isinstance(event.news, Exception):
                    raise event.news
                yield event


class ApiTransport(httpx.BaseTransport):
    """Carries the requests of a blocking client to an API in this process; `requests` are those that came."""

    def __init__(self, api):
        self.requests, self._api = [], api

    def handle_request(self, request):
        async def run():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self._api)) as client:
                headers = {name: value for name, value in request.headers.items() if name != "transfer-encoding"}
                return await client.request(request.method, str(request.url), content=request.read(), headers=headers)

        self.requests.append(request)
        answer = asyncio.run(run())
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)
