"""The real engine behind the whole HTTP face: a thousand mixed requests at once get the answers that they get alone."""

import asyncio
import base64
import io
import json
import random

import httpx
import numpy as np
import pytest
from PIL import Image

from pixellm.inference.config import EngineConfig
from pixellm.inference.segmenter import Segmenter
from pixellm.testing import tiny_model_and_processor
from serve.ingress import build_api
from tests.serve.doubles import RuleModel
from tests.serve.test_chat import user
from tests.serve.test_ingress import CONFIG

QUESTIONS = ["where is the red circle?", "where is the blue ring?", "which of these can roll?", "what is left of the square?"]


def photos(number: int) -> list[bytes]:
    encoded = []
    for seed in range(number):
        pixels = np.random.default_rng(seed).integers(0, 256, (40 + 8 * seed, 60, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded


def request(way: int, data: bytes, question: str) -> tuple[str, dict]:
    """One of four ways to ask the same."""
    image = base64.b64encode(data).decode()
    if way == 0:
        return "/v1/segment", {"files": {"image": data}, "data": {"question": question, "max_new_tokens": "12"}}
    if way == 1:
        return "/v1/segment", {"json": {"image": image, "question": [question, question], "max_new_tokens": 12}}
    if way == 2:
        return "/v1/segment", {"json": {"image": image, "question": question, "max_new_tokens": 12, "stream": True}}
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
    return "/v1/chat/completions", {"json": {"model": "test", "max_tokens": 12, "messages": [user(question, part)]}}


def what_matters(response: httpx.Response):
    """Text and masks, without the ids that every answer has of its own."""
    assert response.status_code == 200, response.text
    if "event-stream" in response.headers["content-type"]:
        response_json = json.loads(response.text.strip().rpartition("data: ")[2])["answer"]
        return [(response_json["text"], response_json["masks"])]
    answer = response.json()
    if "choices" in answer:
        message = answer["choices"][0]["message"]
        return [(message["content"], message["masks"])]
    return [(each["text"], each["masks"]) for each in answer.get("answers", [answer])]


AT_A_TIME = 24  # more than the model has slots, fewer than it holds


def compare(number: int) -> None:
    config = CONFIG.model_copy(update={"request_timeout_s": 1500})
    asked = [(data, question) for data in photos(6) for question in QUESTIONS]
    model = RuleModel(Segmenter(*tiny_model_and_processor(), EngineConfig(num_slots=4)))

    async def run():
        transport = httpx.ASGITransport(build_api(config, model))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
            places = asyncio.Semaphore(AT_A_TIME)

            async def post(index: int, way: int):
                path, body = request(way, *asked[index])
                async with places:
                    return what_matters(await client.post(path, **body))

            alone = [(await post(index, 0))[0] for index in range(len(asked))]
            draw = random.Random(0)
            order = [(draw.randrange(len(asked)), draw.randrange(4)) for _ in range(number)]
            return alone, order, await asyncio.gather(*(post(*each) for each in order))

    alone, order, together = asyncio.run(run())
    assert len(together) == number and len({text for text, _ in alone}) > 1
    for (index, _), answers in zip(order, together, strict=True):
        assert answers == [alone[index]] * len(answers)


def test_mixed_requests_equal_the_answers_alone():
    compare(40)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_mixed_requests_equal_the_answers_alone():
    compare(1000)
