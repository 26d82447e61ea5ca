"""The real app on real HTTP, with a double of the model: `python -m tests.serve.hostile_server CONFIG_JSON`; prints its port.

The double answers four questions at a time, each in 50 ms, and lets clients take turns, as the engine does.
"""

import asyncio
import contextlib
import socket
import sys
from collections import deque

import uvicorn

from serve.config import AppConfig
from serve.ingress import build_api
from tests.serve.doubles import RuleModel

NUM_SLOTS, ANSWER_S = 4, 0.05


class TurnModel(RuleModel):
    """Slots that clients take in turn."""

    def __init__(self):
        super().__init__()
        self._waiting: dict[str, deque[asyncio.Event]] = {}
        self._num_free = NUM_SLOTS

    async def ask(self, ask):
        turn = asyncio.Event()
        self._waiting.setdefault(ask.options.client, deque()).append(turn)
        self._hand_out()
        try:
            await turn.wait()
            await asyncio.sleep(ANSWER_S)
            async with contextlib.aclosing(super().ask(ask)) as events:
                async for event in events:
                    yield event
        finally:
            if turn.is_set():
                self._num_free += 1
            else:
                self._waiting[ask.options.client].remove(turn)
            self._hand_out()

    def _hand_out(self) -> None:
        while self._num_free and (client := next((name for name, queue in self._waiting.items() if queue), None)) is not None:
            queue = self._waiting.pop(client)
            self._waiting[client] = queue  # behind the others
            queue.popleft().set()
            self._num_free -= 1


def main(config: AppConfig) -> None:
    """Serve until it is killed."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        print(listening.getsockname()[1], flush=True)
        listening.listen(2048)
        server = uvicorn.Server(uvicorn.Config(build_api(config, TurnModel()), log_level="error"))
        asyncio.run(server.serve([listening]))


if __name__ == "__main__":
    main(AppConfig.model_validate_json(sys.argv[1]))
