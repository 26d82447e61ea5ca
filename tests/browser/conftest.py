"""A real Chromium and a real server on the loopback. Without Chromium these tests skip; `make test` installs Debian's where it may."""

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from serve.config import AppConfig
from serve.ingress import build_api
from tests.browser.doubles import PageModel
from tests.conftest import ROOT

SCREENSHOTS = ROOT / ".local" / "screenshots"
TIMEOUT_MS = 60_000  # of each step: long, as the tests say what happens and not how fast


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


@pytest.fixture(scope="package")
def browser():
    """Chromium, ended after the tests of this folder: while it runs, no other test can start an event loop in this thread."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium on this machine; apt-get install chromium")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield launched
        launched.close()


@pytest.fixture
def model() -> PageModel:
    return PageModel()


@pytest.fixture
def config() -> AppConfig:
    return AppConfig(model="models/test")


@pytest.fixture
def server(model, config) -> Iterator[str]:
    """Address of a server that answers with `model`; `config` is a parameter of some tests."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        api = build_api(config, model)
        running = uvicorn.Server(uvicorn.Config(api, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
        model.segmenter.go.set()
        running.should_exit = True
        thread.join(10)


@pytest.fixture
def open_page(browser, server):
    """`open_page(**options of the context)`: the page in a window of its own. No script may fail or be refused there."""
    contexts, failures = [], []

    def open_one(url: str = server, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce", **options})
        contexts.append(context)
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: failures.append(f"{error}"))
        page.on("console", lambda message: failures.append(message.text) if "Content Security Policy" in message.text else None)
        page.goto(url)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert failures == []


@pytest.fixture
def page(open_page):
    return open_page()
