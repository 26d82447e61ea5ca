"""Batch inference over shards with Ray Data: each photo once, all its questions, then the figures of a protocol.

What is done with the result (files, pages) is report.py's.
"""

import functools
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from pydantic import Field, model_validator

from pixellm.curation.config import EndpointConfig
from pixellm.data.manifest import Manifest, read_manifest
from pixellm.data.mixture import RowGroup
from pixellm.data.prompts import fill_conversation
from pixellm.data.schema import ROW_SCHEMA
from pixellm.data.spans import list_row_groups
from pixellm.errors import ShardError
from pixellm.evaluation.figures import Figure, Term, build_figures
from pixellm.evaluation.judge import EndpointJudge, Judge, OfflineJudge, judge_answers
from pixellm.evaluation.metrics import Metrics, QuestionScore, score_questions, summarize
from pixellm.evaluation.protocols import PROTOCOLS, Judgement, Protocol, terms
from pixellm.inference.batch import AnySegmenter, Record, answer_rows, segmenter_builder
from pixellm.inference.config import BatchConfig
from pixellm.settings import Seed
from pixellm.storage import open_filesystem
from pixellm.uris import Uri

READ_CPUS = 0.25
NUM_READ_TASKS = 2
MAX_PARTS_PER_GROUP = 16

PhotoKey = tuple[str, str, str]  # source, split, image_id


class EvaluateConfig(BatchConfig):
    """One evaluation of one model over one shard folder."""

    shards: Uri = Field(description="URI of a shard folder, as jobs.prepare_data writes it")
    output: Uri = Field(description="URI of the folder for report.json and report.html")
    local_copy: Uri | None = Field(None, description="a second, local folder for the same files")
    max_rows: int | None = Field(None, gt=0, description="photos to evaluate, the first of the shuffled shards")
    num_examples: int = Field(24, ge=0, description="cards on the page")
    examples: Literal["mixed", "random", "worst", "best"] = Field("mixed", description="mixed: a third of each")
    seed: Seed = Field(0, description="of the questions drawn from templates, of the random examples and of the intervals")
    protocol: Protocol = Field("muse", description=f"what is counted: {', '.join(PROTOCOLS)}; docs/evaluation.md describes them")
    teacher_forced: bool = Field(False, description="feed the true answers, so that only the masks are the model's; figures say so")
    judge: Literal["none", "offline", "endpoint"] = Field("offline", description="of muse: who scores the words. offline compares words, "
                                                          "endpoint asks a language model")
    judge_endpoint: EndpointConfig | None = Field(None, description="of judge=endpoint: the model that is asked")
    judge_cache: Uri | None = Field(None, description="of judge=endpoint: URI of the folder of answers that were paid")
    attention_examples: int = Field(3, ge=0, description="cards with the attention of each codebook token, by a task that loads the model")

    @model_validator(mode="after")
    def _judge_is_whole(self) -> "EvaluateConfig":
        if (self.judge == "endpoint") != (self.judge_endpoint is not None and self.judge_cache is not None):
            raise ValueError("judge=endpoint needs judge_endpoint and judge_cache; without it leave both out")
        return self

    @property
    def mode(self) -> str:
        """How the answers came about; a part of every figure's name."""
        return "teacher_forced" if self.teacher_forced else "free"


@dataclass(frozen=True)
class ScoredAnswer:
    """One answered question: a record of `RECORD_SCHEMA` and its rows."""

    record: Record
    score: QuestionScore


@dataclass(frozen=True)
class Evaluation:
    """`answers` and `failures` (records of photos that were set aside) are sorted by photo and question."""

    config: EvaluateConfig
    manifest: Manifest
    answers: list[ScoredAnswer]
    failures: list[Record]
    num_photos: int
    duration_s: float
    judgements: list[Judgement | None]  # of each answer
    judge_name: str | None = None

    @functools.cached_property
    def photos(self) -> list[PhotoKey]:
        """Those with an answer, sorted."""
        return sorted({photo_key(answer.record) for answer in self.answers})

    @functools.cached_property
    def figures(self) -> dict[str, Figure]:
        """The protocol's, over `photos`."""
        places = {key: place for place, key in enumerate(self.photos)}
        found: list[list[Term]] = [[] for _ in places]
        for answer, judgement in zip(self.answers, self.judgements, strict=True):
            found[places[photo_key(answer.record)]] += terms(self.config.protocol, answer.record, answer.score, judgement)
        return build_figures(found)

    @functools.cached_property
    def metrics(self) -> Metrics:
        """Over all answers; photos that were set aside are not in it, `failures` counts them."""
        return summarize(answer.score for answer in self.answers)

    @property
    def failures_by_reason(self) -> dict[str, int]:
        """Photos set aside, by reason."""
        return dict(Counter(record["failure"] for record in self.failures).most_common())


def evaluate(config: EvaluateConfig, build_segmenter: Callable[[], AnySegmenter] | None = None,
             progress: Callable[[str], None] = print) -> Evaluation:
    """Answer every question of every photo of `config.shards` once, on `num_workers` actors, and score the answers.

    `build_segmenter` is called once in each actor; by default it loads `config.model`. Joins the Ray cluster that is there, or starts one.
    Raises ShardError (no manifest, or not the photos that it promises), StorageError (no such model), and what the judge raises.
    """
    manifest = read_manifest(config.shards)
    build_segmenter = build_segmenter or segmenter_builder(config)
    num_photos = min(config.max_rows or manifest.num_rows, manifest.num_rows)
    start_s, last_s = time.monotonic(), -10.0
    records: list[Record] = []
    seen: Counter[PhotoKey] = Counter()
    for table in _answered(config, num_photos, build_segmenter).iter_batches(batch_size=None, batch_format="pyarrow"):
        records += table.to_pylist()
        seen.update({photo_key(record) for record in table.select(["source", "split", "image_id"]).to_pylist()})
        elapsed_s = time.monotonic() - start_s
        if elapsed_s - last_s >= 5 or len(seen) == num_photos:
            progress(f"evaluate: {len(seen)} of {num_photos} photos, {len(records)} questions, {elapsed_s:.0f} s")
            last_s = elapsed_s
    if len(seen) != num_photos or seen.total() != num_photos:
        raise ShardError(f"{config.shards}: {len(seen)} different photos came {seen.total()} times, expected {num_photos} once; "
                         "prepare the data again")
    records.sort(key=lambda record: (photo_key(record), -1 if record["question_index"] is None else record["question_index"]))
    answered = [record for record in records if not record["failure"]]
    scores = score_questions([(record["masks"], record["true_masks"]) for record in answered])
    answers = [ScoredAnswer(record, score) for record, score in zip(answered, scores, strict=True)]
    judge = build_judge(config)
    judgements: list[Judgement | None] = [None] * len(answers)
    if judge:
        progress(f"evaluate: {len(answers)} answers are judged by {judge.name}")
        judgements = judge_answers(judge, [(each.record, each.score) for each in answers])
    return Evaluation(
        config, manifest, num_photos=num_photos, duration_s=time.monotonic() - start_s, answers=answers,
        failures=[record for record in records if record["failure"]], judgements=judgements, judge_name=judge.name if judge else None,
    )


def build_judge(config: EvaluateConfig) -> Judge | None:
    """None where nobody judges: only MUSE's protocol wants a judge."""
    if config.protocol != "muse" or config.judge == "none":
        return None
    if config.judge_endpoint and config.judge_cache:
        return EndpointJudge(config.judge_endpoint, config.judge_cache)
    return OfflineJudge()


def photo_key(record: Record) -> PhotoKey:
    """What names the photo of a record or of a row."""
    return record["source"], record["split"], record["image_id"]


def fill_row(row: dict[str, Any], seed: int) -> dict[str, Any]:
    """`row` with the texts that it leaves to the templates, always the same ones for one seed. Raises RowError."""
    filled = []
    for index, conversation in enumerate(row["conversations"]):
        question, answer = fill_conversation(conversation, row["regions"], (seed, "evaluate", *photo_key(row), index))
        filled.append(conversation | {"question": question, "answer": answer})
    return row | {"conversations": filled}


def read_photos(shards_uri: str, keys: set[PhotoKey]) -> dict[PhotoKey, bytes]:
    """The encoded photos of `keys`. Only the row groups that hold one of them have their photos read."""
    found: dict[PhotoKey, bytes] = {}
    for uri in read_manifest(shards_uri).shard_uris(shards_uri):
        if len(found) == len(keys):
            break
        filesystem, path = open_filesystem(uri)
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns=["source", "split", "image_id"]).to_pylist()
                wanted = [place for place, row in enumerate(rows) if photo_key(row) in keys]
                if wanted:
                    images = file.read_row_group(group, columns=["image"])["image"]
                    found.update({photo_key(rows[place]): images[place].as_py() for place in wanted})
    return found


def plan_parts(groups: list[RowGroup], num_photos: int, batch_size: int) -> list[dict[str, Any]]:
    """What the reading tasks read: the first `num_photos` rows in parts of whole batches, at most `MAX_PARTS_PER_GROUP` of a row group.

    A part is what one actor takes at a time: small ones spread a small set over the actors, but each reads its row group again.
    """
    parts: list[dict[str, Any]] = []
    for group in groups:
        num_rows = min(group.num_rows, num_photos)
        rows_per_part = batch_size * math.ceil(num_rows / (batch_size * MAX_PARTS_PER_GROUP))
        parts += [{"uri": group.uri, "row_group": group.index, "start": start, "stop": min(start + rows_per_part, num_rows)}
                  for start in range(0, num_rows, max(1, rows_per_part))]
        num_photos -= num_rows
    return parts


def read_part(batch: dict[str, np.ndarray]) -> pa.Table:
    """The rows of one part; runs in a Ray task."""
    filesystem, path = open_filesystem(str(batch["uri"][0]))
    start, stop = int(batch["start"][0]), int(batch["stop"][0])
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        return file.read_row_group(int(batch["row_group"][0]), columns=ROW_SCHEMA.names).slice(start, stop - start)


def _answered(config: EvaluateConfig, num_photos: int, build_segmenter: Callable[[], AnySegmenter]) -> ray.data.Dataset:
    parts = plan_parts(list_row_groups(config.shards), num_photos, config.batch_size)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    with ray.data.DataContext.current(context):
        rows = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
            read_part, batch_size=1, num_cpus=READ_CPUS, compute=ray.data.TaskPoolStrategy(size=NUM_READ_TASKS))
        return answer_rows(rows, config, build_segmenter, functools.partial(fill_row, seed=config.seed), config.teacher_forced)
