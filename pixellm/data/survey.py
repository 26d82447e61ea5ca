"""What a shard folder holds, counted without its photos, and an HTML page of sample rows with their masks. Needs no network to be read."""

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pixellm.data.manifest import Manifest, read_manifest
from pixellm.data.prompts import fill_conversation
from pixellm.data.schema import Row, region_rle
from pixellm.drawing import color_of, draw_masks, to_data_uri
from pixellm.errors import RowError
from pixellm.masks import rle_to_mask, union_rles
from pixellm.photos import load_photo
from pixellm.storage import open_filesystem

COLUMNS = ["height", "width", "regions.list.element.ignore", "regions.list.element.category", "conversations.list.element.targets",
           "conversations.list.element.task"]
BAR_WIDTH = 40
PICTURE_SIDE = 320
SIZE_STEP = 256  # pixels of the longest side that fall into one line


@dataclass
class Survey:
    """Counts over all rows. `targets` and `questions`: how many questions have so many targets, how many photos so many questions."""

    manifest: Manifest
    longest_sides: Counter[int] = field(default_factory=Counter)
    targets: Counter[int] = field(default_factory=Counter)
    questions: Counter[int] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    num_ignored: int = 0

    def lines(self) -> list[str]:
        """For people: totals, and histograms as bars."""
        manifest = self.manifest
        found = [f"{manifest.num_rows:,} photos, {manifest.num_regions:,} regions ({self.num_ignored:,} to be ignored), "
                 f"{manifest.num_conversations:,} questions, {manifest.num_targets:,} targets",
                 f"{manifest.num_bytes:,} bytes in {len(manifest.shards):,} shards, shuffled with seed {manifest.seed}",
                 *(f"from {source.name}, version {source.version}" for source in manifest.sources)]
        found += _bars("targets per question", {str(number): count for number, count in sorted(self.targets.items())})
        found += _bars("questions per photo", {str(number): count for number, count in sorted(self.questions.items())})
        found += _bars("questions by task", dict(self.tasks.most_common()))
        found += _bars("photos by longest side", {f"{step * SIZE_STEP}-{(step + 1) * SIZE_STEP - 1} px": count
                                                  for step, count in sorted(self.longest_sides.items())})
        found += _bars(f"regions by category, the first 20 of {len(self.categories):,}", dict(self.categories.most_common(20)))
        return found + _bars("set aside, by reason", manifest.rejected_by_reason or {"none": 0})


def survey(uri: str) -> Survey:
    """Reads all columns but the photos and masks, a row group at a time. Raises ShardError for what is no shard folder."""
    found = Survey(read_manifest(uri))
    for shard in found.manifest.shard_uris(uri):
        filesystem, path = open_filesystem(shard)
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            for batch in file.iter_batches(columns=COLUMNS):
                for row in batch.to_pylist():
                    found.longest_sides[max(row["height"], row["width"]) // SIZE_STEP] += 1
                    found.questions[len(row["conversations"])] += 1
                    found.targets.update(len(each["targets"]) for each in row["conversations"])
                    found.tasks.update(each["task"] for each in row["conversations"])
                    found.categories.update(region["category"] for region in row["regions"])
                    found.num_ignored += sum(region["ignore"] for region in row["regions"])
    return found


def read_samples(uri: str, num_rows: int, seed: int) -> list[Row]:
    """At most `num_rows` rows, drawn by `seed` from as many row groups as there are, in the order of the folder."""
    places = []
    for shard in read_manifest(uri).shard_uris(uri):
        filesystem, path = open_filesystem(shard)
        metadata = pq.read_metadata(path, filesystem=filesystem)
        places += [(shard, group, row) for group in range(metadata.num_row_groups) for row in range(metadata.row_group(group).num_rows)]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(places))[:num_rows])
    rows: list[Row] = []
    for shard, group in dict.fromkeys(places[i][:2] for i in chosen):
        filesystem, path = open_filesystem(shard)
        table = pq.ParquetFile(path, filesystem=filesystem).read_row_group(group)
        rows += table.take([places[i][2] for i in chosen if places[i][:2] == (shard, group)]).to_pylist()
    return rows


def build_page(uri: str, found: Survey, rows: list[Row], notes: Sequence[str] = ()) -> str:
    """One page: `notes` that say more of the folder, the counts, then each sample with a picture for every question."""
    counts = html.escape("\n".join([*notes, *found.lines()]))
    return _PAGE.replace("{uri}", html.escape(uri)).replace("{counts}", counts).replace("{samples}", "".join(map(_sample_html, rows)))


def _sample_html(row: Row) -> str:
    photo = load_photo(row["image"])
    figures = [f"<figure>{_picture(photo)}<figcaption>{row['width']} x {row['height']} pixels</figcaption></figure>"]
    for index, conversation in enumerate(row["conversations"]):
        try:
            question, answer = fill_conversation(conversation, row["regions"], (row["image_id"], index))
        except RowError as error:
            question, answer = "", f"{error.reason}: {error.detail}"
        masks = [rle_to_mask(union_rles([region_rle(row["regions"][i]) for i in target], (row["height"], row["width"])))
                 for target in conversation["targets"]]
        marks = "".join(f'<i style="background:rgb{color_of(i)}"></i>' for i in range(len(masks)))
        caption = f"<b>{html.escape(question)}</b> {html.escape(answer)} {marks}"
        figures.append(f"<figure>{_picture(draw_masks(photo, masks))}<figcaption>{caption}</figcaption></figure>")
    title = html.escape(f"{row['source']} {row['split']} {row['image_id']}")
    return f"<section><h2>{title}</h2><div>{''.join(figures)}</div></section>"


def _picture(picture: Image.Image) -> str:
    picture = picture.copy()
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    return f'<img alt="" src="{to_data_uri(picture)}">'


def _bars(title: str, counts: dict[str, int]) -> list[str]:
    largest, width = max(counts.values(), default=0) or 1, max(map(len, counts), default=0)
    bars = {name: "#" * round(BAR_WIDTH * count / largest) for name, count in counts.items()}
    return ["", title, *(f"  {name:<{width}}  {counts[name]:>9,}  {bar}".rstrip() for name, bar in bars.items())]


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Samples of {uri}</title><style>
body{font:15px/1.45 system-ui,sans-serif;margin:2rem;color:#222;background:#fafaf8}pre{font-size:13px;overflow-x:auto}
section>div{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0;max-width:320px}h2{font-size:1rem;margin:2rem 0 .5rem}
figcaption{font-size:13px}i{display:inline-block;width:.8em;height:.8em;margin-right:.2em}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#1b1b1b}}</style>
<h1>{uri}</h1><pre>{counts}</pre>{samples}</html>
"""
