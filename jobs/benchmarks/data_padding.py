"""The share of tokens in training batches that is padding, with rows put together by length and as they come."""

from collections.abc import Sequence

import numpy as np

from jobs.benchmarks.result import Table
from pixellm.data.collate import Collator, MicroBatch
from pixellm.data.mixture import BATCHES_PER_WINDOW
from pixellm.data.schema import Conversation, Row
from pixellm.data.sources.shapes import ShapesSource
from pixellm.data.sources.shapes_questions import all_texts
from pixellm.data.spans import StreamedRow
from pixellm.data.stream import build_window
from pixellm.model.presets import build_tiny

NUM_ROWS = 256
PHOTOS_PER_BATCH = (2, 8)
MEDIAN_WORDS, SIGMA = 40, 0.8  # of the written answers: log-normal, as instruction data has them


class AsTheyCome(Collator):
    """Rows are not put together by length."""

    def length(self, streamed: StreamedRow) -> int:
        """All rows are of one length."""
        return 0


def padding_share(collator: Collator, rows: Sequence[Row], photos_per_batch: int) -> float:
    """Of all tokens, text and image, that the language model is given."""
    num_tokens = num_cells = 0
    size = BATCHES_PER_WINDOW * photos_per_batch
    for start in range(0, len(rows) - size + 1, size):
        window = [StreamedRow(row, 0, row["image_id"]) for row in rows[start:start + size]]
        batches: list[MicroBatch] = build_window(collator, window, photos_per_batch, [0, start], skip=0)
        num_tokens += sum(batch.num_tokens for batch in batches)
        num_cells += sum(batch.tensors["attention_mask"].numel() for batch in batches)
    return 1 - num_tokens / num_cells


def measure_padding(num_rows: int = NUM_ROWS) -> Table:
    """Scenes with drawn questions, and with one written answer each whose length varies."""
    source, rng = ShapesSource.model_validate({"num_scenes": num_rows}), np.random.default_rng(0)
    scenes = [source.build_row(index) for index in range(num_rows)]
    written: list[Row] = []
    for row in scenes:
        num_words = int(np.exp(rng.normal(np.log(MEDIAN_WORDS), SIGMA)))
        answer = "red circle " * (num_words // 2) + "."
        written.append({**row, "conversations": [Conversation(question="What is there?", answer=answer, targets=[], task="vqa")]})
    processor = build_tiny(all_texts())[1]
    processor.max_length = 4096
    cells = [(name, photos, *(padding_share(kind(processor, 3, seed=0), rows, photos) for kind in (AsTheyCome, Collator)))
             for name, rows in (("scenes", scenes), ("written answers", written)) for photos in PHOTOS_PER_BATCH]
    return Table("Share of tokens that is padding", ("rows", "photos a micro-batch", "as they come", "by length"), cells)
