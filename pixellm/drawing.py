"""Pictures of answers: masks blended over a photo, and below it the question and the answer with each phrase in its mask's colour.

Knows pictures and text only: no model, no RLE, no files.
"""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

# Okabe and Ito's palette without its black: seven colours that stay apart for the common kinds of colour blindness.
PALETTE: list[Color] = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (204, 121, 167), (0, 114, 178), (240, 228, 66)]

MIN_SIDE, MAX_SIDE = 768, 4096  # pixels of the photo's longest side in an answer's picture
MIN_WIDTH = 512  # narrower pictures leave no room for the text
INK, FAINT, PAPER = (28, 30, 33), (104, 109, 117), (255, 255, 255)


def color_of(index: int) -> Color:
    """RGB colour of the `index`-th mask of an answer; colours repeat after the palette's last."""
    return PALETTE[index % len(PALETTE)]


def draw_masks(photo: Image.Image, masks: Sequence[np.ndarray], alpha: float = 0.5, outline: bool = True) -> Image.Image:
    """Blend `masks` (bool, (H, W) of the photo) over `photo`, the i-th in `color_of(i)`, and return a new RGB picture.

    `alpha` in [0, 1] is the weight of the colour; `outline` draws the mask's edge in its full colour inside a white line.
    Raises ValueError if a mask has another size than the photo.
    """
    canvas = np.asarray(photo.convert("RGB")).copy()
    height, width = canvas.shape[:2]
    for index, mask in enumerate(masks):
        if mask.shape != (height, width):
            raise ValueError(f"mask {index} is {' x '.join(map(str, mask.shape))}, the photo is {height} x {width}; they must agree")
        mask = mask.astype(bool)
        canvas[mask] = (canvas[mask] * (1 - alpha) + np.array(color_of(index)) * alpha + 0.5).astype(np.uint8)
    if outline:  # after all the colours, so that a later mask does not paint over an earlier edge
        thickness = max(1, round(min(max(height, width), MAX_SIDE) / 400))
        for index, mask in enumerate(masks):
            mask = mask.astype(bool)
            inner = _eroded(mask, thickness)
            canvas[mask & ~inner] = PAPER
            canvas[inner & ~_eroded(inner, 2 * thickness)] = color_of(index)
    return Image.fromarray(canvas)


def draw_heat(photo: Image.Image, heat: np.ndarray) -> Image.Image:
    """`heat` (H, W) in [0, 1] of the photo, from the greyed photo to the palette's first colour; RGB."""
    grey = np.asarray(photo.convert("L").convert("RGB"), dtype=np.float32) * 0.6
    weight = heat[..., None].astype(np.float32)
    return Image.fromarray((grey * (1 - weight) + np.array(color_of(0), dtype=np.float32) * weight).round().astype(np.uint8))


def draw_answer(photo: Image.Image, question: str, text: str, spans: Sequence[tuple[int, int]], masks: Sequence[np.ndarray]) -> Image.Image:
    """One picture that shows an answer: the photo with its masks, the question, and `text` below.

    The photo's longer side becomes at least `MIN_SIDE` and at most `MAX_SIDE` pixels, and the letters grow with the picture's width.

    `spans[i]` is the (start, end) range of code points of `text` that names `masks[i]` (bool, (H, W) of the photo); it is set in
    `color_of(i)`. An empty span gets a blank patch of its colour. Raises ValueError if the numbers of spans and masks differ.
    """
    if len(spans) != len(masks):
        raise ValueError(f"found {len(spans)} spans but {len(masks)} masks; give one span for each mask")
    longest = max(photo.size)
    scale = min(max(longest, MIN_SIDE), MAX_SIDE) / longest
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    photo = photo.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    picture = draw_masks(photo, [_resized(mask, size) for mask in masks])

    width = max(MIN_WIDTH, picture.width)
    font_size = max(18, round(width / 36))
    margin, line_height = font_size, round(font_size * 1.6)
    font = ImageFont.load_default(font_size)
    blocks = [(_plain(question), FAINT), (_colored(text, spans), INK)]
    lines = [(line, ink) for characters, ink in blocks for line in _wrapped(characters, font, width - 2 * margin)]

    page = Image.new("RGB", (width, picture.height + 2 * margin + line_height * len(lines)), PAPER)
    page.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(page)
    for row, (line, ink) in enumerate(lines):
        _draw_line(draw, line, font, (margin, picture.height + margin + row * line_height), line_height, ink)
    return page


def to_data_uri(picture: Image.Image) -> str:
    """The picture as a JPEG `data:` URI, for pages that need no other file."""
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=85, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _eroded(mask: np.ndarray, steps: int) -> np.ndarray:
    """`mask` without the pixels within `steps` of its outside; the photo's border counts as inside."""
    for _ in range(steps):
        padded = np.pad(mask, 1, mode="edge")
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`mask` at `size` (width, height), with a smooth edge: bilinear, cut at one half."""
    gray = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(gray.resize(size, Image.Resampling.BILINEAR)) >= 128


# A character and the indices of the masks that it names.
_Character = tuple[str, tuple[int, ...]]


def _plain(text: str) -> list[_Character]:
    return [(character, ()) for character in text]


def _colored(text: str, spans: Sequence[tuple[int, int]]) -> list[_Character]:
    characters: list[_Character] = []
    for position in range(len(text) + 1):
        characters += [("\u00a0", (index,)) for index, (start, end) in enumerate(spans) if start == end == position for _ in range(3)]
        if position < len(text):
            characters.append((text[position], tuple(index for index, (start, end) in enumerate(spans) if start <= position < end)))
    return characters


def _wrapped(characters: list[_Character], font: ImageFont.FreeTypeFont | ImageFont.ImageFont, max_width: float) -> list[list[_Character]]:
    """Break into lines at spaces, or inside a word that alone is wider than a line."""
    lines: list[list[_Character]] = [[]]
    line_width, last_space = 0.0, -1
    for character in characters:
        if character[0] in "\r\n":
            lines.append([])
            line_width, last_space = 0.0, -1
            continue
        character = (character[0] if character[0].isprintable() or character[0] == "\u00a0" else " ", character[1])
        lines[-1].append(character)
        line_width += font.getlength(character[0])
        if character[0] == " ":
            last_space = len(lines[-1]) - 1
        elif line_width > max_width and len(lines[-1]) > 1:
            cut = last_space + 1 if last_space >= 0 else len(lines[-1]) - 1
            rest = lines[-1][cut:]
            lines[-1] = lines[-1][:last_space] if last_space >= 0 else lines[-1][:cut]
            lines.append(rest)
            line_width, last_space = sum(font.getlength(glyph) for glyph, _ in rest), -1
    return lines


def _draw_line(draw: ImageDraw.ImageDraw, line: list[_Character], font, origin: tuple[float, float], line_height: int, ink: Color) -> None:
    x, top = origin
    start = 0
    while start < len(line):
        end = start
        while end < len(line) and line[end][1] == line[start][1]:
            end += 1
        run, owners = "".join(glyph for glyph, _ in line[start:end]), line[start][1]
        run_width = draw.textlength(run, font)
        if owners:  # a patch behind the phrase: yellow letters on white could not be read, dark letters on yellow can
            left, right, bottom = x - line_height // 16, x + run_width + line_height // 16, top + round(line_height * 0.86)
            draw.rectangle((left, top, right, bottom), fill=color_of(owners[0]))
            bar = max(2, line_height // 9)
            for row, owner in enumerate(owners[1:]):  # one bar for each further mask that shares the phrase
                draw.rectangle((left, bottom - (row + 1) * bar, right, bottom - row * bar), fill=color_of(owner))
        draw.text((x, top + line_height * 0.43), run, font=font, fill=_ink_on(color_of(owners[0])) if owners else ink, anchor="lm")
        x += run_width
        start = end


def _ink_on(background: Color) -> Color:
    red, green, blue = background
    return PAPER if 0.299 * red + 0.587 * green + 0.114 * blue < 95 else INK
