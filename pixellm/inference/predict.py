"""One question about every photo of a folder, with Ray Data: the photos are read, answered and written by workers.

What is written is prediction_files.py's.
"""

import functools
import math
from collections.abc import Callable

import ray.data
from pydantic import Field, model_validator

from pixellm.data.progress import show_progress
from pixellm.data.sources.photos import PHOTO_SUFFIXES, is_photo
from pixellm.errors import ConfigError, InputError, StorageError
from pixellm.inference.batch import AnySegmenter, Record, answer_rows, segmenter_builder, set_aside
from pixellm.inference.config import BatchConfig
from pixellm.inference.prediction_files import PredictionFormat, add_photo, write_lists, write_pictures
from pixellm.inference.result_ids import ids_from_annotations, ids_from_names
from pixellm.storage import absolute_uri, list_folder, path_below
from pixellm.uris import Uri

WRITE_CPUS = 0.25


class PredictConfig(BatchConfig):
    """What to ask, about what, and where the answers go."""

    photos: Uri = Field(description="URI of a folder; photos in folders below it count")
    question: str = Field(pattern=r"\S")
    output: Uri = Field(description="URI of the folder for the answers")
    annotations: Uri | None = Field(None, description="annotation file of the photos in COCO's form: results take its image ids")
    format: PredictionFormat = Field("coco", description="coco: one results.json; png: a file for each mask; overlay: one for each photo")

    @model_validator(mode="after")
    def _ids_have_a_use(self) -> "PredictConfig":
        if self.annotations is not None and self.format != "coco":
            raise ValueError(f"annotations gives the image ids of format coco; leave it out for {self.format}")
        return self


def predict(config: PredictConfig, build_segmenter: Callable[[], AnySegmenter] | None = None) -> list[Record]:
    """Answers and writes everything, printing progress; returns the records (`RECORD_SCHEMA`) by photo, failed ones with their reason.

    `build_segmenter` is called once in each actor; by default it loads `config.model`. Joins the Ray cluster that is there, or starts one.
    What lies below the output is not asked about: it may be the answers of an earlier run. Raises ConfigError for an output that is the
    folder of photos and for `annotations` of other photos, StorageError: no photos, no such model, an output that cannot be written.
    """
    uris = {"photos": config.photos, "output": config.output} | ({} if config.model == "tiny" else {"model": config.model})
    config = config.model_copy(update={name: absolute_uri(uri) for name, uri in uris.items()})
    if path_below(config.photos, config.output) == "":
        raise ConfigError(f"output={config.output} is the folder of photos: its pictures would be asked about next time; name another")
    listed = list_folder(config.photos, leave_out=config.output)
    names = [path for path in listed.sizes if is_photo(path)]
    if not names:
        raise StorageError(f"{config.photos} has no photos ({', '.join(PHOTO_SUFFIXES)}); check the path")
    ids = None
    if config.format == "coco":  # before the work: the file may be of other photos
        ids = ids_from_names(names) if config.annotations is None else ids_from_annotations(config.annotations, config.photos, names)
        print("\n".join(f"predict: {note}" for note in ids.notes), flush=True)
    answered = _answered(config, names, build_segmenter or segmenter_builder(config)).iter_rows()
    records = [set_aside({"image_id": path, "source": config.photos, "split": ""},
                         InputError("name_not_utf8", f"the name of {path} is not UTF-8, which the lists of answers are; rename the file"))
               for path in listed.not_utf8 if is_photo(path)]
    records += show_progress(answered, "predict: photos", len(names))
    records.sort(key=lambda record: record["image_id"])
    write_lists(records, config.output, ids)
    return records


def _answered(config: PredictConfig, names: list[str], build_segmenter: Callable[[], AnySegmenter]) -> ray.data.Dataset:
    """Records in no certain order. Reading a photo is part of answering it, so one that cannot be read is set aside like any other."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    with ray.data.DataContext.current(context):
        rows = ray.data.from_items([{"image_id": name, "source": config.photos, "split": ""} for name in names],
                                   override_num_blocks=math.ceil(len(names) / config.batch_size))
        records = answer_rows(rows, config, build_segmenter, functools.partial(add_photo, question=config.question))
        return records.map_batches(write_pictures, batch_size=None, batch_format="pyarrow", num_cpus=WRITE_CPUS,
                                   fn_kwargs={"output": config.output, "kind": config.format})
