"""The commands that the page gives are run as they are, in a shell and in Python, and ask the same again."""

import json
import shutil
import subprocess
import sys

import pytest

from pixellm.masks import rle_to_mask
from tests.browser.actions import ask_to_the_end, choose_photo, photo_file
from tests.browser.doubles import ANSWER, halves_and_disc

NAME = "it's a \"photo\", $HOME; 1.png"
QUESTION = "@what's `where` in $HOME \\n \"here\"; 100% of {it} 🍏?"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / NAME).write_bytes(photo_file()["buffer"])
    return tmp_path


def code_of(page, turn: int, kind: str) -> str:
    page.locator(".code").nth(turn).click()
    text = page.locator(f"#{kind}").text_content()
    page.get_by_role("button", name="Close").click()
    return text


def run(folder, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def conversed(page):
    choose_photo(page, name=NAME)
    ask_to_the_end(page, QUESTION)
    ask_to_the_end(page, "END\nand `that`?")
    return page


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl on this machine")
def test_curl_asks_the_same(conversed, model, folder):
    asked = list(model.segmenter.asked)
    answers = [json.loads(run(folder, "bash", "-c", code_of(conversed, turn, "curl"))) for turn in (0, 1)]
    assert model.segmenter.asked == asked * 2
    masks = [answers[0]["masks"], answers[1]["choices"][0]["message"]["masks"]]
    for each in masks:
        assert all((rle_to_mask(mask["segmentation"]) == true).all() for mask, true in zip(each, halves_and_disc(60, 80), strict=True))


def test_python_asks_the_same(conversed, model, folder):
    (folder / "ask.py").write_text(code_of(conversed, 1, "python"))
    lines = run(folder, sys.executable, "ask.py").splitlines()
    assert model.segmenter.asked[2] == model.segmenter.asked[1]
    assert [turn.answer for turn in model.segmenter.asked[2][1]] == [ANSWER]
    assert lines[0] == "I see 🍏 the left half, a disc and the right half."
    assert [line.rpartition(" 0.")[0] for line in lines[1:]] == ["the left half", "a disc", "the right half"]


def test_what_is_shown_is_copied(open_page):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    choose_photo(page)
    ask_to_the_end(page)
    page.locator(".code").click()
    page.get_by_role("button", name="Copy curl").click()
    page.get_by_role("button", name="Copied curl").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#curl").text_content()
