"""ReasonSeg: questions that need reasoning, with one target, and for some photos an explanation.

Beside each photo lies a JSON file with `text` (several ways to ask for the same), `is_sentence` and `shapes`, polygons with the label
`target`, `ignore` or `flag` (which means nothing). explanatory/train.json has `image`, `query` and `outputs`, the explanation.
Format: `utils/data_processing.py` and `utils/reason_seg_dataset.py` of github.com/dvlab-research/LISA.
"""

import hashlib
import math
import posixpath
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

from pixellm.data.prompts import question_for, reasoning_question_for, unnamed_answer_for
from pixellm.data.schema import Conversation, RejectedRow, Row, build_region, read_photo_info, validate_conversation
from pixellm.data.sources.json_files import decode_json, read_json
from pixellm.data.sources.layout import find_parts
from pixellm.data.sources.photos import PhotoFolder, path_stem
from pixellm.data.sources.plan import PhotoRecord, PlanDraft, Source, SourcePlan
from pixellm.data.sources.text_files import ENCODINGS
from pixellm.errors import RowError
from pixellm.masks import mask_to_rle
from pixellm.storage import join_uri, list_folder, read_bytes, run_parallel
from pixellm.uris import Uri

EXPLANATION_ONLY_PROBABILITY = 0.2  # per text, beside two questions with a mask: a tenth of all, as LISA draws it
TARGET, IGNORE = 1, 2
MAX_COORDINATE = 1e5  # far outside of any photo
# Points of labelme's shapes that cover an area: two corners, a centre with a point of the circle, a polygon's corners. In ReasonSeg's own
# files two points of a polygon are its outline.
NUM_POINTS = {"polygon": (2, 100_000), "rectangle": (2, 2), "circle": (2, 2)}


class _Shape(msgspec.Struct):
    label: str
    points: list[tuple[float, float]]
    shape_type: Any = None


class _Annotation(msgspec.Struct):
    text: list[str]
    is_sentence: bool
    shapes: list[_Shape]


class _Explanation(msgspec.Struct):
    image: str
    query: str
    outputs: str


class _Payload(msgspec.Struct):
    annotation: _Annotation
    explanation: _Explanation | None


class ReasonSegSource(Source):
    """ReasonSeg: one target per question, found by reasoning. `input` is the folder ReasonSeg with train, val, test and explanatory."""

    dataset: ClassVar[str] = "reason_seg"

    input: Uri
    split: Literal["train", "val", "test"]
    encoding: Literal[ENCODINGS] | None = Field(  # type: ignore[valid-type]
        default=None, description="of the files that are not UTF-8; by default cp1252 where a file can be nothing else")

    def plan(self) -> SourcePlan:
        """One record per JSON file; a photo without one is set aside."""
        places = {"photos and annotations": [join_uri(self.input, self.split)]}
        if self.split == "train":
            places["explanations"] = [join_uri(self.input, "explanatory", "train.json")]
        parts = find_parts("ReasonSeg", f"{self.split}.zip and explanatory of ReasonSeg", places)
        folder = parts["photos and annotations"]
        explanations, sha256 = read_json(parts["explanations"], list[_Explanation]) if self.split == "train" else ([], "")
        by_photo = {each.image: each for each in explanations}
        photos = PhotoFolder(folder)
        unlabeled = dict.fromkeys(photos.paths)
        draft = PlanDraft(self.dataset, self.split, photos, counted="questions")
        listed = list_folder(folder)
        paths = [path for path in listed.sizes if path.endswith(".json")]
        digest = hashlib.sha256(sha256.encode())
        for path, data in zip(paths, run_parallel(read_bytes, ((listed.uri_of(path),) for path in paths)), strict=True):
            stem = path_stem(path)
            digest.update(f"{stem} {hashlib.sha256(data).hexdigest()}\n".encode())
            try:
                name = photos.path_of_stem(stem) or f"{stem}.jpg"
                unlabeled.pop(name, None)
                payload = msgspec.json.encode(_Payload(_decode(data, self.encoding), by_photo.get(posixpath.basename(name))))
            except RowError as error:
                draft.reject(stem, error)
                continue
            draft.add(stem, {"file_name": name}, payload)
        for photo in unlabeled:
            draft.reject(path_stem(photo), RowError("labels_missing", f"no {path_stem(photo)}.json below {folder}"))
        return draft.finish(ReasonSegBuilder(self.split, self.seed), f"sha256:{digest.hexdigest()}")


@dataclass(frozen=True)
class ReasonSegBuilder:
    """Region 0 is the target; region 1, where there is one, is to be ignored."""

    split: str
    seed: int

    def build(self, record: PhotoRecord, photo: bytes) -> Iterator[Row | RejectedRow]:
        """See RowBuilder. The `annotation_id` of a question that is set aside is its number on this photo.

        Raises RowError `no_usable_annotation`, `empty_mask`, `polygon_invalid`, `shape_not_area`, and those of `read_photo_info`.
        """
        payload = msgspec.json.decode(record.payload, type=_Payload)
        height, width = read_photo_info(photo).size_hw
        labels = draw_shapes(payload.annotation.shapes, (height, width))
        regions = [build_region(mask_to_rle(labels == TARGET), "target")]
        if (labels == IGNORE).any():
            regions.append(build_region(mask_to_rle(labels == IGNORE), "ignore", ignore=True))
        rng = random.Random(repr((self.seed, ReasonSegSource.dataset, record.image_id)))
        conversations: list[Conversation] = []
        for index, conversation in enumerate(_ask(payload.annotation, payload.explanation, rng)):
            try:
                validate_conversation(conversation, index, regions)
            except RowError as error:
                yield RejectedRow(record.image_id, ReasonSegSource.dataset, error.reason, error.detail, annotation_id=str(index))
            else:
                conversations.append(conversation)
        if not conversations:
            raise RowError("no_usable_annotation", f"none of its {len(payload.annotation.text)} texts can be used")
        yield Row(image_id=record.image_id, source=ReasonSegSource.dataset, split=self.split, image=photo, height=height, width=width,
                  regions=regions, conversations=conversations, license=None, url=None)


def draw_shapes(shapes: Sequence[_Shape], size_hw: tuple[int, int]) -> np.ndarray:
    """uint8 (h, w): 0, TARGET or IGNORE. Larger shapes are drawn first, so that a smaller one in a larger one is kept, whatever it is.

    ReasonSeg's masks are defined by whole points and with the outline, not by COCO's rule. On 500 random polygons Pillow differs from
    OpenCV, which its authors use, in 0.9% of the area, COCO's rule in 2.9%. Raises RowError `polygon_invalid`, `shape_not_area`.
    """
    drawn = [(TARGET if "ignore" not in shape.label.lower() else IGNORE, _draw(shape, size_hw))
             for shape in shapes if shape.label.lower() != "flag"]
    labels = np.zeros(size_hw, dtype=np.uint8)
    for label, mask in sorted(drawn, key=lambda each: -int(each[1].sum())):
        labels[mask] = label
    return labels


def _draw(shape: _Shape, size_hw: tuple[int, int]) -> np.ndarray:
    """A labelme shape as a bool mask (h, w): what its `shape_type` says, a polygon where it says nothing."""
    kind, points = shape.shape_type or "polygon", shape.points
    if kind not in NUM_POINTS:
        raise RowError("shape_not_area", f"a shape of type {kind!r} covers no area that is known; draw a {', '.join(NUM_POINTS)}")
    least, most = NUM_POINTS[kind]
    if not least <= len(points) <= most or any(abs(side) > MAX_COORDINATE for point in points for side in point):
        raise RowError("polygon_invalid", f"a {kind} is {least if least == most else f'{least} or more'} points near the photo, "
                       f"found {str(points)[:60]}")
    image = Image.new("1", (size_hw[1], size_hw[0]))
    whole = [(int(x), int(y)) for x, y in points]
    if kind == "rectangle":
        (x0, y0), (x1, y1) = whole
        ImageDraw.Draw(image).rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=1)
    elif kind == "circle":
        (x, y), (edge_x, edge_y) = points
        radius = min(math.hypot(edge_x - x, edge_y - y), MAX_COORDINATE)
        ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    else:
        ImageDraw.Draw(image).polygon(whole, fill=1, outline=1)
    return np.asarray(image)


def _ask(annotation: _Annotation, explanation: _Explanation | None, rng: random.Random) -> Iterator[Conversation]:
    """Each text once for the mask; where there is an explanation also for both, and now and then for the explanation alone."""
    for text in map(str.strip, annotation.text):
        if not text:
            yield Conversation(question="", answer=None, targets=[[0]], task="reasoning")
            continue
        question = reasoning_question_for(text, rng) if annotation.is_sentence else question_for([_name(text)], "semantic", rng)
        yield Conversation(question=question, answer=unnamed_answer_for(rng), targets=[[0]], task="reasoning")
        if explanation:
            yield Conversation(question=reasoning_question_for(text, rng, explain=True), targets=[[0]], task="reasoning",
                               answer=f"{unnamed_answer_for(rng)} {explanation.outputs}")
            if rng.random() < EXPLANATION_ONLY_PROBABILITY:
                yield Conversation(question=explanation.query, answer=explanation.outputs, targets=[], task="vqa")


def _name(text: str) -> str:
    """What goes after "the"."""
    return text.lower().removeprefix("the ").rstrip(" .?!")


def _decode(data: bytes, encoding: str | None) -> _Annotation:
    """Some files are cp1252, the others UTF-8. Raises RowError `annotation_invalid`, `encoding_unknown`."""
    try:
        return decode_json(data, _Annotation, encoding)
    except msgspec.DecodeError as error:
        raise RowError("annotation_invalid", str(error)) from None
