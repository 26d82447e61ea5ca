"""Texts that try to be markup, from each place that texts come from: nothing of them runs, all of them are shown as they are."""

import json
from functools import partial

import pytest
from playwright.sync_api import expect

from serve.schemas import Mask, SegmentResponse
from tests.browser.actions import ask_to_the_end, choose_photo, photo_file

TEXTS = [
    "<script>window.ran = 1</script>",
    "<img src=x onerror=window.ran=1>",
    "<svg onload=window.ran=1><animate onbegin=window.ran=1 attributeName=x>",
    "\"><iframe srcdoc='<script>parent.ran=1</script>'></iframe>",
    "' onfocus=window.ran=1 autofocus tabindex=0 x='",
    "javascript:window.ran=1",
    "</p></article><style>* { display: none }</style>",
    "<a href=\"javascript:window.ran=1\">press</a>",
    "<math><mtext><table><mglyph><style><img src=x onerror=window.ran=1></style></mglyph></table></mtext></math>",
    "<details open ontoggle=window.ran=1>",
    "{{constructor.constructor('window.ran=1')()}} ${window.ran=1}",
    "&lt;script&gt;window.ran=1&lt;/script&gt; &#x3C;img src=x onerror=window.ran=1&#x3E;",
    "--></textarea><script>window.ran=1</script>",
    "\u202e\u2066<script\u0000>window.ran=1</script>",
    "<form action=//evil.example><input name=x autofocus onfocus=window.ran=1>",
    "<base href=//evil.example/><link rel=stylesheet href=//evil.example/x.css>",
]
NUM_ELEMENTS = "() => document.querySelectorAll('script, iframe, svg, math, style, form, base, link, a, details, img').length"


def assert_nothing_ran(page, num_elements: int) -> None:
    assert page.evaluate("window.ran") is None
    assert page.evaluate(NUM_ELEMENTS) == num_elements
    assert len(page.context.pages) == 1


def test_questions_and_answers_and_labels_are_only_text(page):
    """An "echo" question comes back as the answer's words and as the label of its mask."""
    choose_photo(page)
    num_elements = page.evaluate(NUM_ELEMENTS)
    for text in TEXTS:
        ask_to_the_end(page, f"echo {text}")
        turn = page.locator(".turn").last
        assert turn.locator(".question").text_content() == f"echo {text}"
        assert turn.locator(".answer").text_content() == turn.locator(".switch .label").text_content() == text
        turn.locator(".phrase").hover()
    page.locator(".code").last.click()  # holds all that was asked
    for text in TEXTS:
        assert json.dumps(f"echo {text}", ensure_ascii=False) in page.locator("#python").text_content()
    assert_nothing_ran(page, num_elements)


def refuse(problem: dict, route) -> None:
    route.fulfill(status=problem["status"], json=problem)


def test_a_photos_name_and_the_servers_words_are_only_text(page):
    num_elements = page.evaluate(NUM_ELEMENTS)
    for text in TEXTS:
        page.set_input_files("#file", photo_file(name=text.replace("/", "_").replace("\u0000", "")))
        expect(page.locator("#view")).to_be_visible()
        page.click("#new-photo")
        problem = {"status": 422, "code": text, "detail": text}
        page.route("**/v1/chat/completions", partial(refuse, problem))
        choose_photo(page, name=text.replace("/", "_").replace("\u0000", ""))
        page.fill("#question", text)
        page.press("#question", "Enter")
        expect(page.locator(".turn .problem")).to_be_visible()
        assert page.locator(".turn .problem").text_content() == f"This cannot be asked. {text}"
        page.unroute("**/v1/chat/completions")
        page.click("#new-photo")
        assert_nothing_ran(page, num_elements)


@pytest.mark.parametrize("field, value", [("color", "red;background:url(//evil.example)"), ("id", "\"><script>window.ran=1</script>"),
                                          ("label", "<img src=x onerror=window.ran=1>"), ("span", (-3, 10**9))])
def test_a_mask_that_lies_does_no_harm(page, model, field, value):
    """A model server that was taken over: what it sends is still only drawn and shown."""
    ask = model.ask

    async def lie(asked):
        async for event in ask(asked):
            masks = [event.news] if isinstance(event.news, Mask) else event.news.masks if isinstance(event.news, SegmentResponse) else []
            for mask in masks:
                setattr(mask, field, value)
            yield event

    model.ask = lie
    choose_photo(page)
    num_elements = page.evaluate(NUM_ELEMENTS)
    ask_to_the_end(page)
    expect(page.locator(".switch")).to_have_count(3)
    page.locator(".switch").first.hover()
    assert_nothing_ran(page, num_elements)
