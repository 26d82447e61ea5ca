import numpy as np
import pytest
from PIL import Image

from pixellm.drawing import PALETTE, color_of, draw_answer, draw_masks

GRAY = (100, 100, 100)


def _photo(width: int = 60, height: int = 40) -> Image.Image:
    return Image.new("RGB", (width, height), GRAY)


def _box_mask(top: int, left: int, bottom: int, right: int, height: int = 40, width: int = 60) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def _has_color(picture: Image.Image, color: tuple[int, int, int]) -> bool:
    return bool((np.asarray(picture) == np.array(color)).all(axis=-1).any())


def test_palette_colors_differ_and_repeat_after_the_last():
    assert len(set(PALETTE)) == len(PALETTE)
    assert color_of(len(PALETTE)) == color_of(0)


def test_blend_changes_only_the_mask_and_not_the_photo_given():
    photo, mask = _photo(), _box_mask(10, 5, 20, 30)
    pixels = np.asarray(draw_masks(photo, [mask], alpha=0.5, outline=False))
    expected = (np.array(GRAY) + np.array(color_of(0))) / 2
    assert np.abs(pixels[mask] - expected).max() <= 0.5
    assert (pixels[~mask] == 100).all()
    assert photo.getpixel((6, 11)) == GRAY


def test_outline_stays_inside_its_mask_and_shows_the_full_color():
    mask = _box_mask(10, 5, 30, 50)
    pixels = np.asarray(draw_masks(_photo(), [mask], alpha=0.5, outline=True))
    assert (pixels[~mask] == 100).all()
    assert (pixels[10, 5] == 255).all()
    assert (pixels[11, 20] == color_of(0)).all()


def test_a_mask_of_another_size_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"40 x 61.*40 x 60"):
        draw_masks(_photo(), [np.zeros((40, 61), dtype=bool)])


def test_answer_page_holds_photo_and_colored_phrase():
    text = "The red ball can roll."
    page = draw_answer(_photo(), "Which one can roll?", text, [(4, 12)], [_box_mask(10, 5, 30, 50)])
    photo_height = 512  # 40 rows scaled by 768 / 60
    assert page.width == 768 and page.height > photo_height
    below = page.crop((0, photo_height, page.width, page.height))
    assert _has_color(below, color_of(0))
    assert not _has_color(below, color_of(1))


def test_masks_that_share_a_phrase_all_show_their_color():
    page = draw_answer(_photo(), "Where?", "two balls", [(0, 9), (0, 9), (9, 9)], [_box_mask(0, 0, 9, 9)] * 3)
    below = page.crop((0, 512, page.width, page.height))
    assert all(_has_color(below, color_of(index)) for index in range(3))


def test_long_texts_wrap_and_make_the_page_taller():
    def height_of(text: str) -> int:
        return draw_answer(_photo(), "?", text, [], []).height

    assert height_of("word " * 60) > height_of("word") + 60
    assert height_of("a" * 400) > height_of("a")       # one word wider than a line
    assert height_of("a\nb\nc") > height_of("a b c")


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (2000, 30)])
def test_extreme_photo_sizes(size):
    page = draw_answer(Image.new("L", size), "", "{odd} \x00 \u4e2d", [(0, 5)], [np.ones((size[1], size[0]), dtype=bool)])
    assert page.mode == "RGB" and page.width >= 512


@pytest.mark.parametrize("size", [(100_000, 20), (20, 100_000), (40_000, 200), (1, 1_000_000), (6000, 5000)])
def test_the_picture_is_bounded_whatever_the_photo_is(size):
    mask = np.zeros((size[1], size[0]), dtype=bool)
    mask[: size[1] // 2 + 1] = True
    text = "The strip can be seen. " * 9
    page = draw_answer(Image.new("L", size), "Where is it?", text, [(4, 9)], [mask])
    line_height = 1.6 * max(18, page.width / 36)
    assert page.width <= 4096 and page.height <= 4096 + 14 * line_height, "letters are bounded by the picture, not by the photo"
    assert _has_color(page, color_of(0))


def test_numbers_of_spans_and_masks_must_agree():
    with pytest.raises(ValueError, match="2 spans but 1 masks"):
        draw_answer(_photo(), "?", "a b", [(0, 1), (2, 3)], [_box_mask(0, 0, 9, 9)])
