"""Differences with their intervals as a picture: a dot and a line for each, around a line at 0."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from pixellm.drawing import FAINT, INK, PAPER, color_of

WIDTH, LABEL_WIDTH, MARGIN, ROW_HEIGHT, FONT_SIZE = 1000, 320, 60, 34, 17


def draw_intervals(title: str, rows: Sequence[tuple[str, float, float, float]]) -> Image.Image:
    """`rows`: label, value, low, high. Those whose interval excludes 0 are coloured."""
    font = ImageFont.load_default(FONT_SIZE)
    picture = Image.new("RGB", (WIDTH, ROW_HEIGHT * (len(rows) + 3)), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((12, ROW_HEIGHT * 0.7), title, INK, font, anchor="lm")
    low, high = min([0.0, *(row[2] for row in rows)]), max([0.0, *(row[3] for row in rows)])
    span = (high - low) or 1.0

    def x_of(value: float) -> float:
        return LABEL_WIDTH + (WIDTH - LABEL_WIDTH - MARGIN) * (value - low) / span

    bottom = ROW_HEIGHT * (len(rows) + 1.5)
    draw.line((x_of(0), ROW_HEIGHT, x_of(0), bottom), fill=FAINT)
    for value in (low, 0.0, high):
        draw.text((x_of(value), bottom + 16), f"{value:+.3f}" if value else "0", FAINT, font, anchor="mm")
    for place, (label, value, start, stop) in enumerate(rows):
        y = ROW_HEIGHT * (place + 1.7)
        color = color_of(5) if start > 0 or stop < 0 else FAINT
        draw.text((LABEL_WIDTH - 20, y), label, INK, font, anchor="rm")
        draw.line((x_of(start), y, x_of(stop), y), fill=color, width=3)
        draw.ellipse((x_of(value) - 6, y - 6, x_of(value) + 6, y + 6), fill=color)
    return picture
