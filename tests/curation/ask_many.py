"""Sends many requests through the client and ends: a process for the tests to kill. Arguments: URL, cache, number of requests."""

import asyncio
import sys

from pixellm.curation.budget import Budget, StageCosts, in_process
from pixellm.curation.chat import ChatRequest, Completion
from pixellm.curation.client import ChatClient
from pixellm.curation.config import EndpointConfig
from tests.curation.endpoint import KEY_VARIABLE

CONCURRENCY = 64


def endpoint_config(url: str, **changes) -> EndpointConfig:
    """Of the test endpoint."""
    return EndpointConfig(url=url, model="test", api_key_env=KEY_VARIABLE, **{
        "max_concurrency": CONCURRENCY, "request_timeout_s": 10, "price_per_million_input": 1, "price_per_million_output": 2, **changes})


async def ask_many(config: EndpointConfig, cache: str, count: int) -> tuple[list[Completion], StageCosts]:
    """The answers to `count` distinct requests, in order."""
    budget = Budget({"test": config})
    async with ChatClient(config, "test", in_process(budget), cache) as client:
        requests = [ChatRequest("many", "none", (f"Question {number}",)) for number in range(count)]
        answers = await asyncio.gather(*map(client.complete, requests))
    return answers, budget.costs()["many"]


if __name__ == "__main__":
    asyncio.run(ask_many(endpoint_config(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
