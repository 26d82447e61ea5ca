"""What the page says when something fails, and how it goes on."""

import httpx
import pytest
from playwright.sync_api import expect

from serve.config import AppConfig
from serve.keys import make_key
from serve.problems import ApiError
from tests.browser.actions import ask, ask_to_the_end, choose_photo

KEY, KEY_ENTRY = make_key("reader")


def busy(status: int, retry_after_s: int) -> ApiError:
    return ApiError(status, "busy", "As many as can be are asking.", headers={"retry-after": f"{retry_after_s}"})


@pytest.mark.parametrize("status, title", [(429, "Too many questions at once."), (503, "The server is busy.")])
def test_a_busy_server_is_asked_again_by_itself_after_its_time(page, model, status, title):
    model.refusals = [busy(status, 2), busy(status, 1)]
    choose_photo(page)
    ask(page)
    expect(page.locator(".turn .problem")).to_have_text(f"{title} As many as can be are asking.")
    expect(page.locator(".waiting")).to_have_text("Asking again by itself in 2 s.")
    expect(page.locator(".waiting")).to_have_text("Asking again by itself in 1 s.")
    expect(page.locator(".switch")).to_have_count(3)
    expect(page.locator(".turn .problem")).to_be_hidden()
    assert len(model.asks) == 1 and not model.refusals


def test_waiting_can_be_cut_short_and_given_up(page, model):
    model.refusals = [busy(503, 50), busy(503, 50)]
    choose_photo(page)
    ask(page)
    page.get_by_role("button", name="Ask now").click()
    expect(page.locator(".waiting")).to_have_text("Asking again by itself in 50 s.")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".turn .problem")).to_have_text("Stopped.")
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".switch")).to_have_count(3)


def test_a_long_wait_is_left_to_people(page, model):
    model.refusals = [busy(429, 3600)]
    choose_photo(page)
    ask(page)
    expect(page.locator(".turn .problem")).to_contain_text("The server wants 60 minutes of pause.")
    expect(page.get_by_role("button", name="Ask again")).to_be_visible()


def test_a_failed_question_keeps_photo_and_words(page, model):
    model.refusals = [ApiError(413, "photo_too_large", "The photo has 90 million pixels, at most 40 are allowed."),
                      ApiError(504, "answer_timeout", "no answer within 60 s"), RuntimeError("secret")]
    choose_photo(page)
    ask(page)
    problem = page.locator(".turn .problem")
    expect(problem).to_have_text("The photo is too large. The photo has 90 million pixels, at most 40 are allowed.")
    page.get_by_role("button", name="Ask again").click()
    expect(problem).to_contain_text("The answer took too long.")
    page.get_by_role("button", name="Ask again").click()
    expect(problem).to_contain_text("The server failed on this question.")
    assert "secret" not in page.inner_text("body")
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".switch")).to_have_count(3)


def test_a_lost_connection_before_the_answer(page, model):
    choose_photo(page)
    page.context.set_offline(True)
    ask(page)
    expect(page.locator(".turn .problem")).to_contain_text("The server cannot be reached. Check the connection")
    page.context.set_offline(False)
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".switch")).to_have_count(3)


def test_an_example_without_a_connection_is_explained(page):
    page.context.set_offline(True)
    page.get_by_role("button", name="A star, two rings and a cross").click()
    expect(page.get_by_role("alert")).to_have_text("The server cannot be reached. Check the connection.")


def test_an_answer_that_breaks_off_keeps_what_came(page, server):
    """A stream that ends without its last event, as when a proxy or the server goes away."""
    begun = 'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"I see"}}]}\n\n'
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=200, content_type="text/event-stream", body=begun))
    choose_photo(page)
    ask(page)
    expect(page.locator(".turn .problem")).to_contain_text("The connection was lost.")
    expect(page.locator(".answer")).to_have_text("I see")
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".switch")).to_have_count(3)


def test_a_failure_in_the_middle_is_told_in_the_servers_words(page, server):
    problem = httpx.get(server + "nothing").text
    page.route("**/v1/chat/completions", lambda route: route.fulfill(
        status=200, content_type="text/event-stream", body=f"event: error\ndata: {problem}\n\n"))
    choose_photo(page)
    ask(page)
    expect(page.locator(".turn .problem")).to_have_text("This cannot be asked. Not Found")


@pytest.mark.parametrize("config", [AppConfig(model="models/test", api_keys=[KEY_ENTRY])])
def test_a_server_with_keys_is_given_the_key_of_the_field(page, server):
    key = page.get_by_label("API key")
    expect(key).to_be_visible()
    choose_photo(page)
    ask(page)
    problem = page.locator(".turn .problem")
    expect(problem).to_have_text("This server asks for a key. Enter it below the question, then ask again.")
    key.fill("pxl_wrong")
    page.get_by_role("button", name="Ask again").click()
    expect(problem).to_contain_text("The API key is not one of this server's.")
    key.fill(KEY)
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".switch")).to_have_count(3)
    page.locator(".code").click()
    for kind, way in (("curl", '-H "Authorization: Bearer $PIXELLM_API_KEY"'), ("python", 'os.environ["PIXELLM_API_KEY"]')):
        assert way in page.locator(f"#{kind}").text_content() and KEY not in page.content()
    page.goto(server)
    choose_photo(page)
    ask_to_the_end(page)  # the tab remembers the key
