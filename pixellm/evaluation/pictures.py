"""An answer and the truth as one picture, side by side."""

from PIL import Image

from pixellm.drawing import PAPER, draw_answer
from pixellm.evaluation.evaluate import ScoredAnswer
from pixellm.masks import rle_to_mask
from pixellm.model.processing_pixellm import parse_template


def draw_comparison(photo: Image.Image, answer: ScoredAnswer) -> Image.Image:
    """On the left what the model answered, on the right what was expected, RGB."""
    record = answer.record
    expected, expected_spans = parse_template(record["true_answer"])
    sides = [(f"{record['question']}  (IoU {answer.score.iou:.2f})", record["text"], record["spans"], record["masks"]),
             ("expected", expected, expected_spans, record["true_masks"])]
    pictures = [draw_answer(photo, question, text, [(start, stop) for start, stop in spans], [rle_to_mask(mask) for mask in masks])
                for question, text, spans, masks in sides]
    page = Image.new("RGB", (sum(picture.width for picture in pictures), max(picture.height for picture in pictures)), PAPER)
    for place, picture in enumerate(pictures):
        page.paste(picture, (place * pictures[0].width, 0))
    return page
