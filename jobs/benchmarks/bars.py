"""A bar chart as a picture, for results that are read better than counted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from pixellm.drawing import INK, PAPER, Color

WIDTH, LABEL_WIDTH, ROW_HEIGHT, FONT_SIZE = 1100, 430, 30, 17


@dataclass(frozen=True)
class Bar:
    """One row: what it says on the left, its length, and what is written at its end."""

    label: str
    value: float
    shown: str
    color: Color


def draw_bars(title: str, bars: Sequence[Bar]) -> Image.Image:
    """Horizontal bars on a logarithmic scale that begins at the power of ten below the smallest value. Values are above 0."""
    font = ImageFont.load_default(FONT_SIZE)
    picture = Image.new("RGB", (WIDTH, ROW_HEIGHT * (len(bars) + 2)), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((12, ROW_HEIGHT), f"{title} (logarithmic scale)", INK, font, anchor="lm")
    low = math.floor(math.log10(min(bar.value for bar in bars)) - 1e-9)
    high = math.log10(max(bar.value for bar in bars))
    room = WIDTH - LABEL_WIDTH - 130
    for row, bar in enumerate(bars):
        y = ROW_HEIGHT * row + 2 * ROW_HEIGHT
        length = room * (math.log10(bar.value) - low) / (high - low)
        draw.text((LABEL_WIDTH - 12, y), bar.label, INK, font, anchor="rm")
        draw.rectangle((LABEL_WIDTH, y - 10, LABEL_WIDTH + length, y + 10), fill=bar.color)
        draw.text((LABEL_WIDTH + length + 8, y), bar.shown, INK, font, anchor="lm")
    return picture
