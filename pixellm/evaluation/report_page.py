"""The HTML of a report: figures on top, then one card per example. Everything is inside the page; it needs no network and no script."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from pixellm.drawing import color_of, draw_heat, draw_masks, to_data_uri
from pixellm.evaluation.breakdowns import MAX_COUNT
from pixellm.evaluation.evaluate import ScoredAnswer
from pixellm.evaluation.protocols import HEADLINES
from pixellm.masks import RLE, rle_to_mask
from pixellm.model.processing_pixellm import parse_template

PICTURE_SIDE = 384  # pixels of a picture's longest side on the page
HEADINGS = {"random": "Drawn at random", "worst": "The worst", "best": "The best"}
NAMES = {"giou": "gIoU", "ciou": "cIoU", "judged_giou": "judged gIoU", "judged_ciou": "judged cIoU", "n_acc": "N-acc", "t_acc": "T-acc",
         "miou": "mIoU"}
MODES = {"free": "free generation", "teacher_forced": "teacher-forced: the true answers were fed"}
SPLITS = {"all": "all", "few": "few: at most 3 targets", "many": "many: more than 3", "no_target": "no target (part of few)"}

Looks = tuple[tuple[str, str], ...]  # data URI and caption


@dataclass(frozen=True)
class Card:
    """One example. The pictures are data URIs; `answer` and `expected` are HTML whose phrases have the colours of their masks."""

    image_id: str
    question: str
    answer: str
    expected: str
    iou: float
    num_predicted: int
    num_true: int
    cut_off: bool
    photo_uri: str
    predicted_uri: str
    true_uri: str
    looks: Looks = ()  # of each attention map


def build_card(photo: Image.Image, answer: ScoredAnswer, looks: Looks = ()) -> Card:
    """`looks`: see `draw_looks`.

    A true mask gets the colour of the predicted one that it is matched with; one that nothing overlaps gets a colour of its own."""
    record, score = answer.record, answer.score
    color_of_true = {true: predicted for (predicted, true), iou in zip(score.matches, score.ious, strict=False) if iou > 0}
    unmatched = [true for true in range(score.num_true) if true not in color_of_true]
    color_of_true |= {true: score.num_predicted + place for place, true in enumerate(unmatched)}
    true_colors = [color_of_true[true] for true in range(score.num_true)]
    expected, expected_spans = parse_template(record["true_answer"])
    return Card(
        image_id=record["image_id"], question=record["question"], iou=score.iou, num_predicted=score.num_predicted, num_true=score.num_true,
        answer=color_text(record["text"], record["spans"], range(score.num_predicted)), cut_off=record["finish_reason"] == "length",
        expected=color_text(expected, expected_spans, true_colors), photo_uri=_picture(photo),
        predicted_uri=_picture(photo, record["masks"], range(score.num_predicted)),
        true_uri=_picture(photo, record["true_masks"], true_colors),
        looks=looks,
    )


def draw_looks(photo: Image.Image, attention: Tensor) -> Looks:
    """Data URI and caption of each map of the first mask; `attention`: see `token_attention`."""
    return tuple((_heat(photo, grid.numpy()), f"scale {scale + 1}, token {token + 1}")
                 for maps in attention[:1] for scale, tokens in enumerate(maps) for token, grid in enumerate(tokens))


def color_text(text: str, spans: Sequence[Sequence[int]], colors: Sequence[int]) -> str:
    """`text` as HTML; the phrase `spans[i]` (code points) on the colour of mask `colors[i]`. A mask without a phrase is a blank patch."""
    edges = sorted({0, len(text), *(edge for span in spans for edge in span)})
    parts = []
    for position, start in enumerate(edges):
        for (begin, end), color in zip(spans, colors, strict=True):
            if begin == end == start:
                parts.append(_mark("&nbsp;", [color]))
        if position + 1 < len(edges):
            stop = edges[position + 1]
            owners = [color for (begin, end), color in zip(spans, colors, strict=True) if begin <= start and stop <= end]
            shown = "".join(glyph if glyph.isprintable() or glyph.isspace() else "\ufffd" for glyph in text[start:stop])
            escaped = html.escape(shown)  # an untrained model may write control characters
            parts.append(_mark(escaped, owners) if owners else escaped)
    return "".join(parts)


def build_page(report: Mapping[str, Any], cards: Mapping[str, Sequence[Card]]) -> str:
    """The whole page from report.json's values and the cards by heading."""
    overall, splits = report["metrics"]["all"], report["metrics"]
    tiles = [(NAMES[name], _figure(each["value"]), "" if each["low"] is None else f"95 % interval {each['low']:.3f} to {each['high']:.3f}")
             for name in HEADLINES[report["protocol"]] if (each := report["figures"].get(name))]
    tiles += [
        ("wrong number", f"{overall['num_wrong_count']} of {overall['num_questions']}",
         f"answers: {overall['num_too_few']} with too few masks, {overall['num_too_many']} with too many"),
    ]
    sections = "".join(f"<h2>{HEADINGS[heading]}</h2>{''.join(map(_card_html, some))}" for heading, some in cards.items() if some)
    tiles_html = "".join(f"<div><span>{name}</span><b>{value}</b><small>{note}</small></div>" for name, value, note in tiles)
    model, shards = html.escape(report["model"]), html.escape(report["shards"])
    body = (f"<h1>How well does it answer?</h1><p class=facts>Model <b>{model}</b> on <b>{shards}</b>"
            f" · {report['num_photos']} photos, {report['num_questions']} questions, {report['duration_s']:.0f} s"
            f" · <span class=badge>protocol {report['protocol']}</span><span class=badge>{MODES[report['mode']]}</span>{_judge(report)}</p>"
            f"<div class=tiles>{tiles_html}</div>{_table(splits)}{_breakdowns(report)}{_failures(report)}{sections}")
    return _PAGE.replace("{style}", _STYLE).replace("{title}", f"PixelLM on {shards}").replace("{body}", body)


def _judge(report: Mapping[str, Any]) -> str:
    if not report["judge"]:
        return ""
    unjudged = f", {report['num_unjudged']} questions not judged" if report["num_unjudged"] else ""
    return f"<span class=badge>judge: {html.escape(report['judge'])}{unjudged}</span>"


def _figures(report: Mapping[str, Any]) -> str:
    rows = [(name, _figure(each["value"]), "" if each["low"] is None else f"{each['low']:.3f} to {each['high']:.3f}")
            for name, each in report["figures"].items()]
    return _rows_html([f"{report['protocol']}, {report['mode']}", "value", "95 % interval"], rows)


def _breakdowns(report: Mapping[str, Any]) -> str:
    numbers = [str(count) for count in range(MAX_COUNT)] + [f"{MAX_COUNT} and more"]
    confusion = [(number, *row) for number, row in zip(numbers, report["count_confusion"], strict=True)]
    parts = [("size of the target", report["by_size"]), ("targets of the question", report["by_num_targets"])]
    tables = [_rows_html([title, "count", "mean IoU"], [(name, each["count"], _figure(each["iou"])) for name, each in found.items()])
              for title, found in parts]
    counts = _rows_html(["targets", *(f"{number} masks" for number in numbers)], confusion)
    return ("<details><summary>All figures, with intervals, and where answers are right</summary>"
            f"{_figures(report)}{counts}{''.join(tables)}</details>")


def _rows_html(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose first column names the rows."""
    body = "".join(f"<tr><th>{html.escape(str(row[0]))}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows)
    return f"<div class=scroll><table><tr>{''.join(f'<th>{html.escape(column)}</th>' for column in columns)}</tr>{body}</table></div>"


def _heat(photo: Image.Image, grid: np.ndarray) -> str:
    small = photo.resize(_page_size(photo.size))
    heat = Image.fromarray(grid.astype(np.float32)).resize(small.size, Image.Resampling.BILINEAR)
    return to_data_uri(draw_heat(small, np.asarray(heat).clip(0, 1)))


def _page_size(size: tuple[int, int]) -> tuple[int, int]:
    """(w, h) of a picture on the page."""
    scale = PICTURE_SIDE / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _card_html(card: Card) -> str:
    wrong = card.num_predicted - card.num_true
    badges = [f"IoU {card.iou:.2f}"]
    if wrong:
        badges.append(f"{abs(wrong)} mask{'s' if abs(wrong) > 1 else ''} too {'many' if wrong > 0 else 'few'}")
    if card.cut_off:
        badges.append("cut off")
    predicted = f"predicted: {_count(card.num_predicted)}" if card.num_predicted else "predicted: nothing marked"
    true = f"true: {_count(card.num_true)}" if card.num_true else "true: nothing to mark"
    pictures = ((card.photo_uri, "photo"), (card.predicted_uri, predicted), (card.true_uri, true))
    figures, looks = ("".join(f'<figure><img src="{uri}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
                              for uri, caption in some) for some in (pictures, card.looks))
    looks = f"<p class=note>Where each codebook token of the first mask looks:</p><div class=pictures>{looks}</div>" if looks else ""
    marks = "".join(f'<span class="badge{" bad" if place else ""}">{badge}</span>' for place, badge in enumerate(badges))
    return (f"<article><header><h3>{html.escape(card.question)}</h3><div>{marks}</div></header><div class=pictures>{figures}</div>{looks}"
            f"<dl><dt>answer</dt><dd>{card.answer or '<i>an empty answer</i>'}</dd><dt>expected</dt><dd>{card.expected}</dd></dl>"
            f"<footer>{html.escape(card.image_id)}</footer></article>")


def _table(splits: Mapping[str, Mapping[str, Any]]) -> str:
    columns = ["questions", "gIoU", "cIoU", "gIoU per question", "gIoU of unions", "cIoU of unions", "too few masks", "too many masks"]
    keys = ("giou", "ciou", "giou_per_question", "union_giou", "union_ciou")
    rows = [(label, split["num_questions"], *(_figure(split[key]) for key in keys),
             split["num_too_few"], split["num_too_many"]) for name, label in SPLITS.items() if (split := splits[name])]
    return _rows_html(["", *columns], rows)


def _failures(report: Mapping[str, Any]) -> str:
    if not report["num_failed_photos"] and not report["num_cut_off"]:
        return ""
    reasons = ", ".join(f"{html.escape(reason)}: {count}" for reason, count in report["failed_by_reason"].items())
    set_aside = f"{report['num_failed_photos']} photos were set aside ({reasons}); they are in no figure above. " if reasons else ""
    cut_off = f"{report['num_cut_off']} answers were cut off at the longest length." if report["num_cut_off"] else ""
    return f"<p class=note>{set_aside}{cut_off}</p>"


def _picture(photo: Image.Image, rles: Sequence[RLE] = (), colors: Sequence[int] | None = None) -> str:
    """JPEG data URI of the photo at the page's size with the masks over it, mask i in the colour `colors[i]`.

    `colors` None: the plain photo. Else it is greyed first, or a mask over a coloured thing would not have the colour of its words.
    """
    size = _page_size(photo.size)
    small = photo.resize(size, Image.Resampling.BICUBIC if size[0] > photo.width else Image.Resampling.LANCZOS)
    if colors is not None:
        masks = [np.zeros((size[1], size[0]), dtype=bool) for _ in range(max(colors, default=-1) + 1)]
        for rle, color in zip(rles, colors, strict=True):
            soft = Image.fromarray(rle_to_mask(rle).astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
            masks[color] = np.asarray(soft) >= 128
        small = draw_masks(Image.blend(small, small.convert("L").convert("RGB"), 0.85), masks, alpha=0.65)
    return to_data_uri(small)


def _mark(escaped: str, colors: Sequence[int]) -> str:
    """The first mask's colour behind the words; each further mask of the same phrase is a bar below them."""
    red, green, blue = color_of(colors[0])
    ink = "#fff" if 0.299 * red + 0.587 * green + 0.114 * blue < 95 else "#1c1e21"
    bars = ",".join(f"inset 0 -{3 * height}px rgb{color_of(color)}" for height, color in enumerate(reversed(colors[1:]), start=1))
    shadow = f";box-shadow:{bars}" if bars else ""
    return f'<mark style="background:rgb({red},{green},{blue});color:{ink}{shadow}">{escaped}</mark>'


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _count(masks: int) -> str:
    return f"{masks} mask{'s' if masks > 1 else ''}"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body><main>{body}</main></body></html>
"""
_STYLE = """
:root{color-scheme:light dark;--ink:#1c1e21;--faint:#686d75;--paper:#f6f7f9;--card:#fff;--line:#dfe2e7;--bad:#a33d00}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--faint:#a0a6af;--paper:#15171a;--card:#1f2226;--line:#363b42;--bad:#ff9d66}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}
h1{margin:0;font-size:28px;line-height:1.25}h2{margin:40px 0 12px;font-size:20px}h3{margin:0;font-size:18px;font-weight:600}
.facts{margin:8px 0 24px;color:var(--faint);overflow-wrap:anywhere}.facts b{color:var(--ink);font-weight:600}
.badge{display:inline-block;padding:1px 9px;border:1px solid var(--line);border-radius:99px;font-size:13px;color:var(--ink)}
.badge{white-space:nowrap}
.badge+.badge{margin-left:6px}.bad{color:var(--bad);border-color:currentColor}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px}
.tiles div,article{background:var(--card);border:1px solid var(--line);border-radius:10px}
.tiles div{padding:14px 16px}.tiles span{display:block;color:var(--faint);font-size:14px}
.tiles b{display:block;font-size:26px;line-height:1.3;font-variant-numeric:tabular-nums}
.tiles small{display:block;color:var(--faint);font-size:13px;line-height:1.35}
.scroll{overflow-x:auto;margin-top:20px}table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:6px 10px;text-align:right;border-bottom:1px solid var(--line);font-weight:400;white-space:nowrap}
tr:first-child th{color:var(--faint);white-space:normal;vertical-align:bottom}th:first-child{text-align:left}
.note{color:var(--faint);font-size:14px}summary{margin-top:20px;cursor:pointer;color:var(--faint);font-size:14px}
article{padding:16px;margin-bottom:16px}header{display:flex;flex-wrap:wrap;gap:6px 16px;justify-content:space-between;align-items:baseline}
.pictures{display:grid;grid-template-columns:repeat(3,1fr);gap:12px;margin:12px 0}
figure{margin:0}img{display:block;width:100%;height:auto;border-radius:6px}figcaption{margin-top:4px;color:var(--faint);font-size:13px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 14px;margin:0}
dt{color:var(--faint);font-size:14px;line-height:24px}dd{margin:0}
mark{padding:1px 5px;border-radius:4px;-webkit-box-decoration-break:clone;box-decoration-break:clone}
footer{margin-top:8px;color:var(--faint);font-size:12px;overflow-wrap:anywhere}
@media(max-width:560px){.pictures{grid-template-columns:1fr 1fr}.pictures figure:first-child{grid-column:1/-1}}
"""
