"""What people do on the page, and what they see of it."""

import io

from PIL import Image
from playwright.sync_api import Page, expect

from pixellm.testing import random_photo


def photo_file(height: int = 60, width: int = 80, name: str = "photo.png") -> dict:
    """A file as Playwright hands it to a page."""
    stream = io.BytesIO()
    random_photo(height, width).save(stream, "PNG")
    return {"name": name, "mimeType": "image/png", "buffer": stream.getvalue()}


def choose_photo(page: Page, **options) -> None:
    page.set_input_files("#file", photo_file(**options))
    expect(page.locator("#view")).to_be_visible()


def ask(page: Page, question: str = "What is where?") -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")


def ask_to_the_end(page: Page, question: str = "What is where?") -> None:
    num_answered = page.locator(".code:visible").count()
    ask(page, question)
    expect(page.locator(".code:visible")).to_have_count(num_answered + 1)


def lit_masks(page: Page) -> set[str]:
    """Ids of the masks that stand out in the words and among the buttons (both must agree)."""
    phrases, switches = (set(page.eval_on_selector_all(f"{kind}.lit", "all => all.map(each => each.dataset.masks)"))
                         for kind in (".phrase", ".switch"))
    assert phrases == switches
    return phrases


def point_at(page: Page, x: float, y: float, press: bool = False) -> None:
    """Moves the pointer to a place of the photo, `x` and `y` in shares of its width and height."""
    box = page.locator("#overlay").bounding_box()
    place = (box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.mouse.click(*place) if press else page.mouse.move(*place)


def painted(page: Page, x: float, y: float) -> list[int]:
    """RGBA of what is painted over a place of the photo, once the page has drawn."""
    return page.evaluate("""async ([x, y]) => {
        for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
        const canvas = document.getElementById('overlay');
        return [...canvas.getContext('2d').getImageData(x * canvas.width, y * canvas.height, 1, 1).data];
    }""", [x, y])


def saved(page: Page, button: str) -> tuple[str, bytes]:
    """Name and bytes of the file that pressing `button` saves."""
    with page.expect_download() as download:
        page.click(button)
    return download.value.suggested_filename, download.value.path().read_bytes()


def to_image(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))
