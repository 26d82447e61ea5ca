"""A real HTTP server that speaks chat completions and misbehaves on purpose, the same way for the same seed.

`python -m tests.curation.endpoint [port=8001] [seed=0] [faults=true]` serves it until Ctrl-C. Its "model" reads the list of objects out of
our prompts and writes questions about them, some of them wrong; it looks at no photo. It wants the key that is in CURATION_TEST_KEY.
"""

import asyncio
import hashlib
import json
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

from aiohttp import web

KEY_VARIABLE, KEY = "CURATION_TEST_KEY", "sk-test-3c0ffee-never-to-be-written"
# What befalls an attempt before or while it is answered, and what is wrong with an answer that arrives whole.
FAULTS = {"too_many": 0.01, "too_many_until": 0.0006, "broken": 0.02, "dropped": 0.01, "cut": 0.01, "garbled": 0.01, "slow": 0.001}
SLIPS = {"unknown_instance": 0.05, "one_target": 0.04, "box": 0.04, "bare": 0.04, "no_seg": 0.03, "twice": 0.04, "half_json": 0.05}
LATENCY_S = 0.005


class Endpoint:
    """`delivered` counts, by request, the answers that were written whole; `arrivals` has (time, tokens) of each attempt.

    A request is known by the hash of what was sent; `keys` has what the client calls it.
    """

    def __init__(self, seed: int = 0, faults: dict[str, float] | None = None, slips: dict[str, float] | None = None, slow_s: float = 12.0):
        self.seed, self.slow_s = seed, slow_s
        self.faults = FAULTS if faults is None else faults
        self.slips = SLIPS if slips is None else slips
        self.delivered: Counter[str] = Counter()
        self.attempts: Counter[str] = Counter()
        self.keys: dict[str, str] = {}
        self.befell: Counter[str] = Counter()
        self.arrivals: list[tuple[float, int]] = []
        self.num_open = self.most_open = 0
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            return await self._handle(request)
        finally:
            self.num_open -= 1

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        sent = await request.read()
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return web.json_response({"error": f"no such key: {request.headers.get('authorization')}"}, status=401)
        body, name = json.loads(sent), hashlib.sha256(sent).hexdigest()
        content, finish_reason = self.answer(body, random.Random(f"{self.seed}/{name}"))
        usage = {"prompt_tokens": len(sent) // 40 + 20, "completion_tokens": len(content) // 4 + 1}
        self.arrivals.append((time.monotonic(), sum(usage.values())))
        self.attempts[name] += 1
        self.keys[name] = request.headers["idempotency-key"]
        fault = draw(self.faults, random.Random(f"{self.seed}/{name}/{self.attempts[name]}"))
        self.befell[fault] += 1
        await asyncio.sleep(LATENCY_S)
        if fault == "too_many":
            return web.json_response({"error": "slower"}, status=429, headers={"Retry-After": "0"})
        if fault == "too_many_until":
            date = format_datetime(datetime.now(UTC) + timedelta(seconds=1.5), usegmt=True)
            return web.json_response({"error": "slower"}, status=429, headers={"Retry-After": date})
        if fault == "broken":
            return web.json_response({"error": "it broke"}, status=random.Random(name).choice([500, 502, 503]))
        if fault in ("slow", "dropped"):
            await asyncio.sleep(self.slow_s if fault == "slow" else 0)
            return self._drop(request)
        answer = json.dumps({"id": name[:8], "object": "chat.completion", "model": f"{body['model']}-of-today", "usage": usage, "choices": [
            {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": content}}]}).encode()
        if fault == "garbled":
            return web.Response(body=answer[:len(answer) // 2], content_type="application/json")
        response = web.StreamResponse(headers={"content-type": "application/json", "content-length": str(len(answer))})
        await response.prepare(request)
        if fault == "cut":
            await response.write(answer[:len(answer) // 2])
            return self._drop(request)
        await response.write(answer)
        await response.write_eof()
        self.delivered[name] += 1
        return response

    def _drop(self, request: web.Request) -> web.Response:
        if request.transport:
            request.transport.close()
        return web.Response()

    def answer(self, body: dict[str, Any], rng: random.Random) -> tuple[str, str]:
        """Content and finish reason."""
        turns = [each["content"] if isinstance(each["content"], str) else each["content"][-1]["text"] for each in body["messages"]]
        objects = re.search(r'^\[\{"id".*\}\]$', turns[0], re.MULTILINE)
        if not objects or "response_format" not in body:
            return f"A photo of several things, number {rng.randrange(1000)}.", "stop"
        listed = json.loads(objects.group())
        wanted = int(re.findall(r"(\d+) questions?", turns[-1])[0])
        slips = self.slips if len(turns) == 1 else {}
        questions = [self._question(listed, draw(slips, rng), rng) for _ in range(wanted)]
        content = json.dumps({"questions": questions})
        if draw(slips, rng) == "half_json":
            return content[:len(content) // 2], "length"
        return content, "stop"

    def _question(self, listed: list[dict[str, Any]], slip: str, rng: random.Random) -> dict[str, Any]:
        chosen = rng.sample(listed, 1 if slip == "one_target" else min(len(listed), rng.randint(2, 4)))
        targets = [{"id": each["id"], "description": f"the {rng.choice(WORDS)} {each['name']} in view"} for each in chosen]
        question = f"Which would {' '.join(rng.sample(WORDS, 5))}?"
        if slip == "unknown_instance":
            targets[0]["id"] = 9999
        if slip == "bare":
            targets[0]["description"] = f"The {chosen[0]['name']}"
        if slip == "twice":
            question = "Which of the things that can be seen here belong together?"
        answer = "You want " + " and ".join(f"{each['description']} {{seg}}" for each in targets) + "."
        if slip == "no_seg":
            answer = answer.replace("{seg}", "", 1)
        if slip == "box":
            answer += f" It is at {chosen[0]['box']}."
        return {"question": question, "answer": answer, "targets": targets}


WORDS = ("amber", "bright", "calm", "distant", "eager", "faded", "gentle", "hidden", "idle", "jolly", "keen", "lonely", "muddy", "narrow",
         "old", "plain", "quiet", "round", "sunny", "tall", "useful", "vivid", "warm", "young")


def draw(shares: dict[str, float], rng: random.Random) -> str:
    """One of the names with its probability, or an empty text."""
    value = rng.random()
    for name, share in shares.items():
        value -= share
        if value < 0:
            return name
    return ""


@contextmanager
def serving(endpoint: Endpoint, port: int = 0) -> Iterator[Endpoint]:
    """In a thread of this process, on the loopback; `url` is set."""
    loop = asyncio.new_event_loop()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/chat/completions", endpoint.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

    try:
        run(runner.setup())
        run(web.TCPSite(runner, "127.0.0.1", port).start())
        endpoint.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield endpoint
    finally:
        run(runner.cleanup())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def main() -> None:
    """See above."""
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    global KEY
    KEY = os.environ.get(KEY_VARIABLE, KEY)
    endpoint = Endpoint(int(given.get("seed", 0)), None if given.get("faults", "true") == "true" else {}, slow_s=20)
    with serving(endpoint, int(given.get("port", 8001))):
        print(f"{endpoint.url} until Ctrl-C; the key is {KEY_VARIABLE}={KEY}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print(f"{sum(endpoint.delivered.values()):,} answers delivered to {len(endpoint.delivered):,} distinct requests; attempts that "
                  f"something befell: {dict(endpoint.befell)}")


if __name__ == "__main__":
    main()
