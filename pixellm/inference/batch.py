"""Answers to all questions about many photos with Ray Data: `SegmentBatch` for tables, `answer_rows` for datasets of them.

Knows rows and tables, not where they come from nor where the answers go.
"""

import functools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import ray.data
from PIL import Image

from pixellm.errors import InputError, PixelLMError, RowError, StorageError, TooManyRejectedError
from pixellm.inference.config import BatchConfig
from pixellm.inference.segmentation import Segmentation
from pixellm.inference.segmenter import load_segmenter
from pixellm.masks import RLE, union_rles
from pixellm.photos import load_photo
from pixellm.resources import wait_for_room
from pixellm.storage import exists

logger = logging.getLogger(__name__)

RLE_TYPE = pa.struct([pa.field("size", pa.list_(pa.int32())), pa.field("counts", pa.string())])
# One record per question, or one for a photo that was set aside: then `failure` is its reason, and there is no question.
RECORD_SCHEMA = pa.schema([
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("question_index", pa.int32()),
    pa.field("task", pa.string()),
    pa.field("question", pa.string()),
    pa.field("true_answer", pa.string()),  # with `{seg}` once per target, like the row's
    pa.field("true_masks", pa.list_(RLE_TYPE)),
    pa.field("true_categories", pa.list_(pa.string())),  # of each true mask that of its regions, "" where they have several
    pa.field("text", pa.string()),
    pa.field("spans", pa.list_(pa.list_(pa.int32()))),  # code points of `text` that name each predicted mask
    pa.field("masks", pa.list_(RLE_TYPE)),
    pa.field("scores", pa.list_(pa.float32())),
    pa.field("finish_reason", pa.string()),
    pa.field("num_tokens", pa.int32()),
    pa.field("failure", pa.string()),
    pa.field("failure_detail", pa.string()),
])

SIDE_CPUS = 0.25  # of the tasks that read for the actors or write for them
Record = dict[str, Any]


class AnySegmenter(Protocol):
    """What is needed of a `Segmenter`."""

    def segment(self, images: Sequence[Image.Image], questions: Sequence[str], max_new_tokens: int = ..., *,
                forced_answers: Sequence[str] | None = ...) -> list[Segmentation]: ...


def segmenter_builder(config: BatchConfig) -> Callable[[], AnySegmenter]:
    """Loads the model of `config` when it is called, in each actor. Raises StorageError at once when there is none."""
    if config.model != "tiny" and not exists(config.model):
        raise StorageError(f"no model at {config.model}; give the folder that jobs.export wrote, or tiny")
    return functools.partial(load_segmenter, config)


def answer_rows(rows: ray.data.Dataset, config: BatchConfig, build_segmenter: Callable[[], AnySegmenter],
                prepare_row: Callable[[dict[str, Any]], dict[str, Any]], teacher_forced: bool = False) -> ray.data.Dataset:
    """`rows` through `SegmentBatch` on `num_workers` actors: records of `RECORD_SCHEMA`.

    Waits until one of them has room. Raises ResourcesError when no node has it in `resource_wait_s`.
    """
    worker = {"CPU": config.cpus_per_worker} | ({"GPU": config.gpus_per_worker} if config.gpus_per_worker else {})
    wait_for_room([worker, {"CPU": SIDE_CPUS}], "a worker with its reading and writing", config.resource_wait_s)
    return rows.map_batches(
        SegmentBatch, batch_size=config.batch_size, batch_format="pyarrow", num_cpus=config.cpus_per_worker,
        num_gpus=config.gpus_per_worker or None, compute=ray.data.ActorPoolStrategy(size=config.num_workers),
        fn_constructor_args=[build_segmenter, config.max_new_tokens, prepare_row, teacher_forced])


def check_failures(failures: Sequence[Record], num_photos: int, max_share: float) -> None:
    """Raises TooManyRejectedError when more than `max_share` of `num_photos` were set aside; `failures` are their records."""
    if len(failures) > max_share * num_photos:
        reasons = dict(Counter(record["failure"] for record in failures).most_common())
        raise TooManyRejectedError(
            f"{len(failures)} of {num_photos} photos were set aside, by reason {reasons}, the first: {failures[0]['failure_detail']}; "
            f"at most {max_share:.0%} are allowed (max_failed_share)")


@dataclass(frozen=True)
class _Photo:
    row: dict[str, Any]
    image: Image.Image


class SegmentBatch:
    """Calls `build_segmenter` once, then turns tables of rows (design: one photo with all its questions) into tables of `RECORD_SCHEMA`.

    `prepare_row` completes a row first, such as one whose questions are still to be drawn or whose photo is still to be read; `height` and
    `width` may stay None, `regions` is empty then. A photo that fails (it cannot be decoded, prepared or answered) is set aside as a
    record with its reason; the others of its batch are answered all the same.
    """

    def __init__(self, build_segmenter: Callable[[], AnySegmenter], max_new_tokens: int = 128,
                 prepare_row: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: row, teacher_forced: bool = False):
        self._segmenter, self._teacher_forced = build_segmenter(), teacher_forced
        self._max_new_tokens, self._prepare_row = max_new_tokens, prepare_row

    def __call__(self, batch: pa.Table) -> pa.Table:
        """All conversations of all photos of `batch`, answered in one call of the segmenter: freely, or with the rows' own answers."""
        records: list[Record] = []
        photos: list[_Photo] = []
        for row in batch.to_pylist():
            try:
                prepared = self._prepare_row(row)
                photos.append(_Photo(prepared, load_photo(prepared["image"])))
            except Exception as error:
                records.append(set_aside(row, error))
        return pa.Table.from_pylist(records + self._answer(photos), schema=RECORD_SCHEMA)

    def _answer(self, photos: list[_Photo]) -> list[Record]:
        """A call that fails as a whole is repeated photo by photo, so that only the one at fault is lost."""
        try:
            images = [photo.image for photo in photos for _ in photo.row["conversations"]]
            questions = [conversation["question"] for photo in photos for conversation in photo.row["conversations"]]
            given = [conversation["answer"] for photo in photos for conversation in photo.row["conversations"]]
            forced = {"forced_answers": given} if self._teacher_forced else {}
            answers = iter(self._segmenter.segment(images, questions, self._max_new_tokens, **forced) if questions else [])
            return [_to_record(photo.row, index, next(answers)) for photo in photos for index in range(len(photo.row["conversations"]))]
        except Exception as error:
            if len(photos) > 1:
                return [record for photo in photos for record in self._answer([photo])]
            logger.warning("photo %s is set aside", photos[0].row["image_id"], exc_info=not isinstance(error, PixelLMError))
            return [set_aside(photos[0].row, error)]


def _to_record(row: dict[str, Any], index: int, answer: Segmentation) -> Record:
    conversation = row["conversations"][index]
    rles = [RLE(size=list(region["rle_size"]), counts=region["rle_counts"]) for region in row["regions"]]
    size_hw = (row["height"], row["width"])
    if answer.size_hw != size_hw and row["height"] is not None:
        raise RowError("size_mismatch", f"the upright photo is {answer.size_hw} (h, w), the row says {size_hw}")
    return {
        **_identity(row), "question_index": index, "task": conversation["task"], "question": conversation["question"],
        "true_answer": conversation["answer"],
        "true_masks": [union_rles([rles[region] for region in target], size_hw) for target in conversation["targets"]],
        "true_categories": [_category([row["regions"][region] for region in target]) for target in conversation["targets"]],
        "text": answer.text, "spans": [list(target.span) for target in answer.targets], "masks": [target.rle for target in answer.targets],
        "scores": [target.score for target in answer.targets], "finish_reason": answer.finish_reason, "num_tokens": answer.num_tokens,
    }


def _category(regions: Sequence[dict[str, Any]]) -> str:
    names = {region["category"] for region in regions}
    return names.pop() if len(names) == 1 else ""


def set_aside(row: Record, error: Exception) -> Record:
    """The record of a photo that failed; `row` is its row or an earlier record."""
    reason = error.reason if isinstance(error, RowError) else error.code if isinstance(error, InputError) else type(error).__name__
    return {**dict.fromkeys(RECORD_SCHEMA.names), **_identity(row), "failure": reason, "failure_detail": str(error) or reason}


def _identity(row: dict[str, Any]) -> Record:
    return {name: row[name] for name in ("image_id", "source", "split")}
