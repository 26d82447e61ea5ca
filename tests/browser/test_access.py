"""For everybody: by keyboard alone, with a screen reader, light and dark, wide and narrow."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from serve.problems import ApiError
from tests.browser.actions import ask, ask_to_the_end, choose_photo, lit_masks, photo_file
from tests.browser.conftest import SCREENSHOTS


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_violation(open_page, model, scheme, width):
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": 844})
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    def check(stage: str) -> None:
        page.screenshot(path=SCREENSHOTS / f"{stage}-{scheme}-{width}.png")
        found = Axe().run(page)
        assert found.violations_count == 0, f"{stage}: {found.generate_report()}"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{stage} is wider than the window"

    check("empty")
    choose_photo(page)
    ask_to_the_end(page)
    page.locator(".phrase").first.focus()
    page.locator(".switch").nth(1).click()
    check("answered")
    page.get_by_role("button", name="Use it from code").click()
    check("code")
    page.keyboard.press("Escape")
    model.refusals = [ApiError(503, "busy", "Too many requests are waiting.", headers={"retry-after": "50"})]
    ask(page)
    expect(page.locator(".waiting:visible")).to_be_visible()
    check("waiting")


def test_all_of_it_works_with_the_keyboard_alone(page, model):
    def tab_to(selector: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"no way to {selector}")

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the question"
    with page.expect_file_chooser() as chooser:  # begun before the steps to it, or the system's own dialog may open first
        tab_to("#file")
        page.keyboard.press("Enter")
    chooser.value.set_files(photo_file())
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("What is where?")
    page.keyboard.press("Enter")
    expect(page.locator(".switch")).to_have_count(3)
    page.keyboard.press("Shift+Tab")
    tab_to(".phrase")
    first = lit_masks(page)
    page.keyboard.press("Tab")
    assert len(first) == 1 and len(lit_masks(page)) == 1 and lit_masks(page) != first
    page.keyboard.press("Enter")
    tab_to(".switch")
    page.keyboard.press("Space")
    expect(page.locator(".switch").first).to_have_attribute("aria-pressed", "false")
    tab_to(".code")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Ask this from code")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".code")).to_be_focused()
    tab_to("#question")
    page.keyboard.type("And this?")
    page.keyboard.press("Enter")
    expect(page.locator(".switch")).to_have_count(6)
    assert [question for question, _ in model.segmenter.asked] == ["What is where?", "And this?"]


def test_a_screen_reader_hears_names_and_changes(page, model):
    choose_photo(page)
    expect(page.get_by_role("status")).to_have_text("The photo photo.png is ready. Ask about it.")
    model.segmenter.go.clear()
    ask(page)
    expect(page.get_by_role("status")).to_have_text("Asking.")
    model.segmenter.go.set()
    expect(page.get_by_role("status")).to_have_text("Answer: I see 🍏 the left half, a disc and the right half. 3 masks.")
    expect(page.get_by_role("article", name="What is where?")).to_be_visible()
    expect(page.get_by_role("list", name="Masks").get_by_role("button", pressed=True)).to_have_count(3)
    expect(page.get_by_role("img", name="Your photo: photo.png")).to_be_visible()
    expect(page.get_by_role("slider", name="Opacity")).to_have_attribute("aria-valuetext", "50 %")
