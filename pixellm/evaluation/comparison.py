"""Two evaluations side by side, from the `scores.parquet` of each."""

import io
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pixellm.errors import ConfigError
from pixellm.evaluation.evaluate import PhotoKey
from pixellm.evaluation.figures import Difference, Figure, compare, select_photos
from pixellm.evaluation.report import PHOTO_COLUMNS, SCORES
from pixellm.storage import exists, join_uri, read_bytes

SAME = ("protocol", "mode", "judge")


@dataclass(frozen=True)
class Scores:
    """What each of `photos` adds to each figure. `about`: protocol, mode, judge, shards and model."""

    about: dict[str, str]
    photos: list[PhotoKey]
    figures: dict[str, Figure]


def read_scores(folder: str) -> Scores:
    """Raises ConfigError where there is no such file, or it is none of ours."""
    uri = join_uri(folder, SCORES)
    if not exists(uri):
        raise ConfigError(f"{folder} has no {SCORES}; give a folder that jobs.evaluate wrote")
    try:
        table = pq.read_table(io.BytesIO(read_bytes(uri)))
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{uri} is not a Parquet file: {error}") from None
    about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    figures = {name: Figure(tuple(columns), *(np.array(table[f"{name}/{part}"].to_pylist()) for part in ("numerators", "denominators")))
               for name, columns in json.loads(about.pop("columns")).items()}
    return Scores(about, list(zip(*(table[name].to_pylist() for name in PHOTO_COLUMNS), strict=True)), figures)


def compare_scores(one: Scores, other: Scores) -> tuple[dict[str, Difference], int]:
    """Of the figures that both have, over the photos that both have, and how many these are.

    Raises ConfigError for evaluations by different protocols, modes or judges, or without a photo in common.
    """
    for key in SAME:
        if one.about.get(key) != other.about.get(key):
            raise ConfigError(f"{key} is {one.about.get(key)} in one and {other.about.get(key)} in the other; evaluate both the same way")
    places = {photo: place for place, photo in enumerate(other.photos)}
    common = [(place, places[photo]) for place, photo in enumerate(one.photos) if photo in places]
    if not common:
        raise ConfigError("the evaluations have no photo in common; evaluate both on the same shards")
    if any(one.figures[name].columns != other.figures[name].columns for name in one.figures.keys() & other.figures):
        raise ConfigError("the evaluations have different classes; evaluate both on the same shards")
    chosen = select_photos(one.figures, [place for place, _ in common]), select_photos(other.figures, [place for _, place in common])
    found = {name: compare(figure, chosen[1][name]) for name, figure in chosen[0].items() if name in chosen[1]}
    return {name: each for name, each in found.items() if each is not None}, len(common)
