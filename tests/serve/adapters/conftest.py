"""A server in a thread, for clients that bring their own way to connect."""

import threading
import time

import pytest
import uvicorn

from serve.ingress import build_api
from tests.serve.doubles import RuleModel
from tests.serve.test_ingress import CONFIG


@pytest.fixture(scope="session")
def server():
    """Its address."""
    running = uvicorn.Server(uvicorn.Config(build_api(CONFIG, RuleModel()), port=0, log_level="warning", ws="none"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not running.started:
        assert thread.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    thread.join()
