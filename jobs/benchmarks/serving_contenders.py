"""Who answers in `suite=serving`: the bare engine, our deployment, a plain FastAPI app with the model behind a lock, and `@serve.batch`.

Over HTTP all get the same request, a photo as the body and the question in the query, and give the same body.
"""

import asyncio
import contextlib
import io
import multiprocessing
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import aiohttp
import ray
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image
from ray import serve as ray_serve
from starlette.requests import Request
from starlette.responses import Response

from jobs.benchmarks.inference_contenders import standard_sizes
from pixellm.inference.segmenter import Segmenter, load_segmenter
from pixellm.model import PixelLMConfig, PixelLMForConditionalGeneration
from pixellm.model.presets import TINY_VOCABULARY, build_processor, train_tiny_tokenizer
from serve.app import build_app
from serve.config import AppConfig
from serve.schemas import SegmentResponse

START_TIMEOUT_S = 120
BATCH_SIZE, BATCH_WAIT_S = 8, 0.02  # of @serve.batch; as many as the engine has slots
NUM_CODEBOOK_TOKENS = 6


@dataclass(frozen=True)
class Ask:
    """One question about one photo; `photo` is an encoded picture."""

    photo: bytes
    question: str
    max_new_tokens: int


# Gives the HTTP status; the bare engine's is always 200.
Answer = Callable[[aiohttp.ClientSession, Ask], Awaitable[int]]


@contextlib.contextmanager
def start_contenders(config: AppConfig, only: tuple[str, ...] | None = None) -> Iterator[dict[str, Answer]]:
    """All four or `only` some, ready to answer, under the names that the report shows; the model of `config` is everybody's."""
    port, lock_port = _free_port(), _free_port()
    address = f"http://{config.host}:{port}"
    locked = multiprocessing.get_context("spawn").Process(target=_serve_behind_lock, args=(config, lock_port), daemon=True)
    answers = {"engine": lambda: _in_process(load_segmenter(config)), "deployed": lambda: _deploy(config, address),
               "@serve.batch": lambda: _deploy_batched(config, address), "FastAPI, lock": lambda: _wait_for(config, lock_port, locked)}
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        ray_serve.start(http_options={"host": config.host, "port": port})
        yield {name: start() for name, start in answers.items() if only is None or name in only}
    finally:
        ray_serve.shutdown()
        ray.shutdown()
        if locked.is_alive():
            locked.terminate()
            locked.join()


def write_standard_model(folder: str) -> None:
    """The standard case of `suite=inference` as a model directory, with a processor. It never ends an answer of its own."""
    vision, text = standard_sizes()
    tokenizer = train_tiny_tokenizer([], NUM_CODEBOOK_TOKENS)
    text.vocab_size, text.eos_token_id, text.pad_token_id = TINY_VOCABULARY, tokenizer.eos_token_id, tokenizer.pad_token_id
    config = PixelLMConfig(vision_config=vision, text_config=text, image_token_id=TINY_VOCABULARY,
                           codebook_token_ids=[TINY_VOCABULARY + 1 + index for index in range(NUM_CODEBOOK_TOKENS)])
    torch.manual_seed(0)
    model = PixelLMForConditionalGeneration(config)
    with torch.no_grad():
        model.language_model.get_output_embeddings().weight[tokenizer.eos_token_id] = 0
    model.save_pretrained(folder)
    build_processor(config, tokenizer).save_pretrained(folder)


def _deploy(config: AppConfig, address: str) -> Answer:
    ray_serve.run(build_app(config.model_dump()), name=config.app_name, route_prefix="/")
    return _over_http(f"{address}/v1/segment")


def _deploy_batched(config: AppConfig, address: str) -> Answer:
    batched = ray_serve.deployment(Batched, name="batched", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0.5})
    ray_serve.run(batched.bind(config), name="batched", route_prefix="/batched")
    return _over_http(f"{address}/batched/")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _in_process(segmenter: Segmenter) -> Answer:
    async def answer(client: aiohttp.ClientSession, ask: Ask) -> int:
        photo = await asyncio.to_thread(lambda: segmenter.prepare_photo(_read_photo(ask.photo)))
        async for _ in segmenter.answer_async(photo, ask.question, ask.max_new_tokens, with_parts=False):
            pass
        return 200

    return answer


def _over_http(url: str) -> Answer:
    async def answer(client: aiohttp.ClientSession, ask: Ask) -> int:
        fields = {"question": ask.question, "max_new_tokens": str(ask.max_new_tokens)}
        async with client.post(url, params=fields, data=ask.photo, headers={"content-type": "image/png"}) as response:
            await response.read()
            return response.status

    return answer


def _read_photo(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


async def _read_ask(request: Request) -> Ask:
    return Ask(await request.body(), request.query_params["question"], int(request.query_params["max_new_tokens"]))


def _answer_together(segmenter: Segmenter, asks: list[Ask]) -> list[Response]:
    """A fixed batch: all wait for its longest answer."""
    longest = max(ask.max_new_tokens for ask in asks)
    answers = segmenter.segment([_read_photo(ask.photo) for ask in asks], [ask.question for ask in asks], longest)
    return [Response(SegmentResponse.from_segmentation(answer, "plain").model_dump_json(), media_type="application/json")
            for answer in answers]


def _serve_behind_lock(config: AppConfig, port: int) -> None:
    segmenter, lock, app = load_segmenter(config), threading.Lock(), FastAPI()

    @app.post("/v1/segment")
    async def segment(request: Request) -> Response:
        ask = await _read_ask(request)

        def answer() -> Response:
            with lock:
                return _answer_together(segmenter, [ask])[0]

        return await asyncio.to_thread(answer)

    uvicorn.run(app, host=config.host, port=port, log_level="error")


def _wait_for(config: AppConfig, port: int, process: multiprocessing.process.BaseProcess) -> Answer:
    process.start()
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.is_alive():
        with contextlib.suppress(OSError), socket.create_connection((config.host, port)):
            return _over_http(f"http://{config.host}:{port}/v1/segment")
        time.sleep(0.2)
    raise RuntimeError(f"nothing listens at port {port} after {START_TIMEOUT_S} s; the process "
                       + ("runs" if process.is_alive() else "ended"))


class Batched:
    """The same model with Serve's own batching."""

    def __init__(self, config: AppConfig):
        self._segmenter = load_segmenter(config)

    async def __call__(self, request: Request) -> Response:
        """One request of a batch."""
        return await self._answer(await _read_ask(request))

    @ray_serve.batch(max_batch_size=BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_S)
    async def _answer(self, asks: list[Ask]) -> list[Response]:
        return await asyncio.to_thread(_answer_together, self._segmenter, asks)
