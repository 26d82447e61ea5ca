"""Photos in a folder as rows for `SegmentBatch`, and its records as files: COCO results, PNG masks, overlays. Knows no Ray.

A photo is named by its path below the folder, and so are its files: `kitchen/1.jpg` -> `kitchen/1.jpg.0.png`, `kitchen/1.jpg.1.png`, …
"""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from pixellm.drawing import draw_answer
from pixellm.inference.batch import Record, set_aside
from pixellm.inference.result_ids import ImageId, ResultIds
from pixellm.masks import mask_to_png, rle_area, rle_box_xywh, rle_to_mask
from pixellm.photos import load_photo
from pixellm.storage import join_uri, read_bytes, write_bytes

PredictionFormat = Literal["coco", "png", "overlay"]
CATEGORY_ID = 1  # the one category of COCO results: what a mask shows is said by its phrase


def add_photo(row: dict[str, Any], question: str) -> dict[str, Any]:
    """A row of `image_id` (path below `source`, a folder's URI) and `split`, with its photo and `question`; nothing is known of the truth.

    Raises StorageError.
    """
    conversation: dict[str, Any] = {"question": question, "answer": None, "targets": [], "task": "reasoning"}
    return row | {"image": read_bytes(join_uri(row["source"], row["image_id"])), "height": None, "width": None, "regions": [],
                  "conversations": [conversation]}


def write_pictures(records: pa.Table, output: str, kind: PredictionFormat) -> pa.Table:
    """Writes the files of each photo below the URI `output`; returns `records`, with those set aside whose pictures could not be made.

    `png`: each mask as a 1-bit PNG of the photo's size. `overlay`: one picture of photo, masks, question and answer. `coco`: none.
    Raises StorageError where a file cannot be written.
    """
    written = records.to_pylist()
    for index, record in enumerate(written if kind != "coco" else ()):
        if record["failure"]:
            continue
        try:
            pictures = _pictures(record, kind)
        except Exception as error:
            written[index] = set_aside(record, error)
            continue
        for name, data in pictures.items():
            write_bytes(join_uri(output, name), data)
    return pa.Table.from_pylist(written, schema=records.schema)


def _pictures(record: Record, kind: PredictionFormat) -> dict[str, bytes]:
    """PNGs by the path of their file."""
    masks = [rle_to_mask(rle) for rle in record["masks"]]
    if kind == "png":
        return {f"{record['image_id']}.{index}.png": mask_to_png(mask) for index, mask in enumerate(masks)}
    photo = load_photo(read_bytes(join_uri(record["source"], record["image_id"])))
    stream = io.BytesIO()
    draw_answer(photo, record["question"], record["text"], [(start, end) for start, end in record["spans"]], masks).save(stream, "PNG")
    return {f"{record['image_id']}.png": stream.getvalue()}


def write_lists(records: Sequence[Record], output: str, ids: ResultIds | None = None) -> None:
    """Writes below the URI `output`: `answers.jsonl` and `set_aside.jsonl` (which photos failed and why).

    With `ids` also COCO's `results.json`, where `ids` come from (`result_ids.json`), and `results_without_id.json` for photos that have
    none, with their path as the id. Raises StorageError.
    """
    answered = [record for record in records if not record["failure"]]
    answers = [{"photo": record["image_id"], "boxes_xywh": [rle_box_xywh(rle) for rle in record["masks"]],
                **{name: record[name] for name in ("text", "spans", "scores", "finish_reason")}} for record in answered]
    set_aside = [{"photo": record["image_id"], "reason": record["failure"], "detail": record["failure_detail"]}
                 for record in records if record["failure"]]
    for name, lines in (("answers", answers), ("set_aside", set_aside)):
        write_bytes(join_uri(output, f"{name}.jsonl"), "".join(json.dumps(line) + "\n" for line in lines).encode())
    if ids is None:
        return
    write_bytes(join_uri(output, "result_ids.json"), json.dumps(ids.to_dict(), indent=1).encode())
    write_bytes(join_uri(output, "results.json"), json.dumps(to_coco_results(records, ids.of_photo)).encode())
    if without := {photo: [photo] for photo, found in ids.of_photo.items() if not found}:
        write_bytes(join_uri(output, "results_without_id.json"), json.dumps(to_coco_results(records, without)).encode())


def to_coco_results(records: Sequence[Record], ids: Mapping[str, Sequence[ImageId]]) -> list[dict[str, Any]]:
    """One entry of a COCO results file for each mask that is not empty and each id of its photo, with its phrase as an extra field.

    `ids` are the image ids of photos (`ResultIds.of_photo`); those that it lacks are left out.
    """
    return [{"image_id": image_id, "category_id": CATEGORY_ID, "segmentation": rle, "bbox": rle_box_xywh(rle),
             "score": round(score, 6), "phrase": record["text"][start:end]}
            for record in records if not record["failure"] for image_id in ids.get(record["image_id"], ())
            for rle, score, (start, end) in zip(record["masks"], record["scores"], record["spans"], strict=True) if rle_area(rle)]
