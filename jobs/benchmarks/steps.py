"""Quantities over time as a picture: one panel each, above one axis of time."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from pixellm.drawing import FAINT, INK, PAPER, color_of

WIDTH, LEFT, RIGHT, PANEL_HEIGHT, GAP, FONT_SIZE = 1100, 60, 20, 110, 44, 16
NUM_TICKS = 8


@dataclass(frozen=True)
class Quantity:
    """`values[i]` holds from `times_s[i]` to the next; the axis goes from 0 to the largest."""

    label: str
    times_s: Sequence[float]
    values: Sequence[float]


def draw_steps(title: str, quantities: Sequence[Quantity]) -> Image.Image:
    """The panels from top to bottom; time is in seconds, from 0."""
    font = ImageFont.load_default(FONT_SIZE)
    picture = Image.new("RGB", (WIDTH, 50 + len(quantities) * (PANEL_HEIGHT + GAP) + 40), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((LEFT, 24), title, INK, font, anchor="lm")
    end_s = max(quantity.times_s[-1] for quantity in quantities)

    def x_of(time_s: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * time_s / end_s

    for row, quantity in enumerate(quantities):
        bottom = 50 + row * (PANEL_HEIGHT + GAP) + GAP / 2 + PANEL_HEIGHT
        highest = max(quantity.values) or 1

        def y_of(value: float, bottom: float = bottom, highest: float = highest) -> float:
            return bottom - PANEL_HEIGHT * value / highest

        draw.line((LEFT, bottom, WIDTH - RIGHT, bottom), fill=FAINT)
        draw.text((LEFT - 8, bottom), "0", FAINT, font, anchor="rm")
        draw.text((LEFT - 8, y_of(highest)), f"{highest:.3g}", FAINT, font, anchor="rm")
        draw.text((LEFT + 4, y_of(highest) - 14), quantity.label, INK, font, anchor="lm")
        ends_s = [*quantity.times_s[1:], end_s]
        corners = [(x_of(time_s), y_of(value)) for start_s, stop_s, value in zip(quantity.times_s, ends_s, quantity.values, strict=True)
                   for time_s in (start_s, stop_s)]
        draw.line(corners, fill=color_of(row), width=3)
    for tick in range(NUM_TICKS + 1):
        time_s = end_s * tick / NUM_TICKS
        draw.text((x_of(time_s), picture.height - 24), f"{time_s:.0f} s", FAINT, font, anchor="rm" if tick == NUM_TICKS else "mm")
    return picture
