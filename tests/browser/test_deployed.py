"""The page in front of the whole: Ray Serve, a model replica, the checkpoint that ships, a real browser."""

import json
import re
import socket

import pytest
from playwright.sync_api import expect

from pixellm.masks import rle_area
from serve.config import AppConfig
from tests.browser.actions import saved

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def deployed(local_ray):
    """Address of the application with the small model."""
    from ray import serve as ray_serve

    from serve.app import build_app

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = AppConfig(model="tiny", dtype="float32", num_cpus=0.5, port=port)
    try:
        ray_serve.start(http_options={"host": config.host, "port": port})
        ray_serve.run(build_app(config.model_dump()), name=config.app_name)
        yield f"http://{config.host}:{port}/"
    finally:
        ray_serve.shutdown()


def test_a_question_is_answered_in_words_and_masks(open_page, deployed):
    page = open_page(deployed)
    page.get_by_role("button", name="A star, two rings and a cross").click()
    page.get_by_role("button", name="Find everything with a hole.").click()
    expect(page.locator(".code:visible")).to_have_count(1)
    text = page.locator(".answer").text_content()
    assert re.fullmatch(r"(the \w+ \w+(, | and )?)+\.|there are none\.", text), text
    num_masks = page.locator(".switch").count()
    assert num_masks == page.locator(".phrase").count() == text.count("the ")
    coco = json.loads(saved(page, "#save-coco")[1])
    assert [each["area"] for each in coco["annotations"]] == [rle_area(each["segmentation"]) for each in coco["annotations"]]
    page.get_by_role("button", name="What is not blue?").click()
    expect(page.locator(".code:visible")).to_have_count(2)
