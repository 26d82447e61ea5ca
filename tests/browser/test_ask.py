"""Asking: three clicks to the first mask, words as they come, questions that follow, photos from everywhere."""

import time

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from pixellm.data.sources.shapes import draw_scene
from serve.config import AppConfig
from serve.model_config import ModelConfig
from serve.page import FOLDER
from tests.browser.actions import ask, ask_to_the_end, choose_photo, painted, photo_file
from tests.browser.conftest import SCREENSHOTS
from tests.browser.doubles import ANSWER


def until(holds, timeout_s: float = 60) -> None:
    """Waits for what a server thread does."""
    end_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.02)


def test_the_first_mask_takes_at_most_three_clicks(page):
    page.get_by_role("button", name="A star, two rings and a cross").click()
    page.get_by_role("button", name="Find everything with a hole.").click()
    expect(page.locator(".switch")).to_have_count(3)
    assert painted(page, 0.1, 0.1)[3] > 0
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "answer.png")


def test_words_and_masks_come_before_the_end(page, model):
    model.segmenter.go.clear()
    model.segmenter.words_before_hold = 6  # up to the first phrase and its mask
    choose_photo(page)
    ask(page)
    answer = page.locator(".answer")
    expect(answer).to_have_text("I see 🍏 the left half,")
    expect(page.locator(".switch")).to_have_text(["the left half50 % sure, 50 % of the photo"])
    assert painted(page, 0.1, 0.5)[3] > 0 and painted(page, 0.9, 0.5)[3] == 0
    expect(page.locator("#stop")).to_be_visible()
    model.segmenter.go.set()
    expect(answer).to_have_text("I see 🍏 the left half, a disc and the right half.")
    expect(page.locator(".phrase")).to_have_text(["the left half", "a disc", "the right half"])
    expect(page.locator("#spoken")).to_have_text("Answer: I see 🍏 the left half, a disc and the right half. 3 masks.")
    assert painted(page, 0.9, 0.5)[3] > 0


def test_a_question_that_follows_knows_the_ones_before_it(page, model):
    choose_photo(page)
    ask_to_the_end(page, "What is where?")
    ask_to_the_end(page, "And what else?")
    expect(page.locator(".question")).to_have_text(["What is where?", "And what else?"])
    (first, nothing), (second, history) = model.segmenter.asked
    assert (first, nothing, second) == ("What is where?", (), "And what else?")
    assert [(turn.question, turn.answer) for turn in history] == [("What is where?", ANSWER)]
    page.click("#new-photo")
    expect(page.locator(".turn")).to_have_count(0)
    choose_photo(page)
    ask_to_the_end(page, "And now?")
    assert model.segmenter.asked[-1] == ("And now?", ())


@pytest.mark.parametrize("config", [AppConfig(model="models/test", more_models=[ModelConfig(model="models/other")])])
def test_one_of_several_models_is_asked(page, model):
    choose_photo(page)
    ask_to_the_end(page)
    page.get_by_label("Model").select_option("other")
    ask_to_the_end(page)
    assert [asked.model for asked in model.asks] == ["test", "other"]
    page.locator(".code").last.click()
    assert '"model": "other"' in page.locator("#curl").text_content()


def test_the_newest_question_is_in_sight(open_page):
    for width in (1280, 390):
        page = open_page(viewport={"width": width, "height": 600})
        choose_photo(page)
        for number in range(2):
            ask_to_the_end(page, f"Question {number}?")
        expect(page.locator(".code:visible").last).to_be_in_viewport()
        form = page.locator("#ask").bounding_box()
        last = page.locator(".code:visible").last.bounding_box()
        assert last["y"] + last["height"] <= form["y"], "the form hides the answer"


def test_stopping_frees_the_server_and_the_page(page, model):
    model.segmenter.go.clear()
    choose_photo(page)
    ask(page)
    expect(page.locator(".answer")).to_have_text("I see")
    page.click("#stop")
    expect(page.locator(".problem", has_text="Stopped.")).to_be_visible()
    until(lambda: model.segmenter.num_left == 1)
    model.segmenter.go.set()
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".switch")).to_have_count(3)
    assert model.segmenter.asked[-1] == ("What is where?", ())


def test_photos_can_be_dropped_and_pasted_and_others_are_refused(page):
    hand_over = """([kind, bytes, type, name]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], name, {type}));
        const options = {bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer};
        document.dispatchEvent(kind === 'paste' ? new ClipboardEvent(kind, options) : new DragEvent(kind, options));
    }"""
    bytes_of = list(photo_file()["buffer"])
    page.evaluate(hand_over, ["drop", list(b"no photo"), "image/png", "notes.png"])
    expect(page.locator("#photo-problem")).to_contain_text("“notes.png” is not a picture that this browser can show")
    for kind in ("drop", "paste"):
        page.evaluate(hand_over, [kind, bytes_of, "image/png", f"{kind}.png"])
        expect(page.get_by_alt_text(f"Your photo: {kind}.png")).to_be_visible()
        expect(page.locator("#photo-problem")).to_be_hidden()
        page.click("#new-photo")
    assert page.get_attribute("#camera", "capture") == "environment"


def test_the_examples_are_drawn_scenes():
    for file in (FOLDER / "examples").iterdir():
        scene = draw_scene(20261125, int(file.stem.removeprefix("scene-")), 480).image
        shipped = np.asarray(Image.open(file), dtype=int)
        assert abs(shipped - scene).mean() < 4, file.name  # 2.3: the noise that JPEG leaves out
