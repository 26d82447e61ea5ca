"""What COCO and LVIS have in common: an instances file, a folder of photos, and referring questions about the marked instances."""

import random
import re
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from pixellm.data.schema import Region, RejectedRow, Row
from pixellm.data.sources.coco_files import CocoCategory, CocoFile, draft_photos
from pixellm.data.sources.frame import PhotoFrame
from pixellm.data.sources.json_files import read_json
from pixellm.data.sources.layout import find_parts
from pixellm.data.sources.photos import PhotoFolder
from pixellm.data.sources.plan import PhotoRecord, PlanDraft, Source, SourcePlan
from pixellm.data.sources.referring import Category, ReferringOptions, build_referring
from pixellm.errors import ConfigError, RowError
from pixellm.uris import Uri

MAX_ABSENT_PER_PHOTO = 32


class InstancesSource(Source, ReferringOptions):
    """`input` is the folder of photos, `annotations` the instances file; both are URIs. `split` defaults to that in the file's name."""

    dataset: ClassVar[str]
    is_federated: ClassVar[bool]

    input: Uri
    annotations: Uri
    split: str | None = None

    @abstractmethod
    def build_categories(self, entries: list[CocoCategory]) -> dict[int, Category]:
        """Categories by their id, from the `categories` of the file."""

    def plan(self) -> SourcePlan:
        """One record per photo: its entry and its annotations, as the text that stands in the file."""
        split = self.split or self._split_of_name()
        find_parts(self.dataset, "a folder of photos and an annotation file", {"input": [self.input], "annotations": [self.annotations]})
        draft = PlanDraft(self.dataset, split, PhotoFolder(self.input))
        file, sha256 = read_json(self.annotations, CocoFile)
        draft_photos(file, draft)
        builder = InstancesBuilder(self, split, self.build_categories(file.categories), file.license_names())
        return draft.finish(builder, f"sha256:{sha256}")

    def _split_of_name(self) -> str:
        found = re.search(r"train|val|test", self.annotations.rstrip("/").rpartition("/")[2])
        if not found:
            raise ConfigError(f"the name of annotations={self.annotations} says no split; give split=train or split=val")
        return found.group()


@dataclass(frozen=True)
class InstancesBuilder:
    """One region per annotation; crowd regions are `ignore`. Questions are about categories of which every instance is marked."""

    source: InstancesSource
    split: str
    categories: Mapping[int, Category]
    licenses: Mapping[Any, str]

    def build(self, record: PhotoRecord, photo: bytes) -> Iterator[Row | RejectedRow]:
        """See RowBuilder. Raises RowError `no_usable_annotation`, `nothing_to_ask` and those of PhotoFrame."""
        content = msgspec.json.decode(record.payload)
        image, dataset = content["image"], self.source.dataset
        frame = PhotoFrame(photo, (image["height"], image["width"]))
        absent, incomplete = self._absent_and_incomplete(image)
        absent = absent if record.is_complete else set()
        regions: list[Region] = []
        by_category: dict[int, list[int]] = defaultdict(list)
        annotated: set[int] = set()
        for annotation in content["annotations"]:
            category_id, is_crowd = annotation["category_id"], bool(annotation.get("iscrowd", 0))
            try:
                region = frame.region(annotation.get("segmentation"), self._category(category_id).name, ignore=is_crowd)
            except RowError as error:
                incomplete.add(category_id)
                yield RejectedRow(record.image_id, dataset, error.reason, error.detail, annotation_id=str(annotation.get("id")))
                continue
            annotated.add(category_id)
            if not is_crowd:
                by_category[category_id].append(len(regions))
            regions.append(region)
        if content["annotations"] and not regions:
            raise RowError("no_usable_annotation", f"all of its {len(content['annotations'])} annotations were set aside")
        rng = random.Random(repr((self.source.seed, dataset, image["id"])))
        absent_ids = sorted((absent & self.categories.keys()) - annotated - incomplete)
        conversations = build_referring(
            regions,
            {self.categories[each]: by_category[each] for each in sorted(by_category.keys() - incomplete)},
            [self.categories[each] for each in rng.sample(absent_ids, min(MAX_ABSENT_PER_PHOTO, len(absent_ids)))],
            self.source, rng,
        )
        if not conversations:
            raise RowError("nothing_to_ask", "no category is marked exhaustively, and none is known to be absent")
        height, width = frame.size_hw
        yield Row(image_id=record.image_id, source=dataset, split=self.split, image=photo, height=height, width=width,
                  regions=regions, conversations=conversations, license=self.licenses.get(image.get("license")),
                  url=image.get("coco_url") or image.get("flickr_url"))

    def _absent_and_incomplete(self, image: Mapping[str, Any]) -> tuple[set[int], set[int]]:
        """Ids that are absent unless an annotation names them, and ids of which the photo has more than is marked."""
        if not self.source.is_federated:
            return set(self.categories), set()
        return set(image.get("neg_category_ids", [])), set(image.get("not_exhaustive_category_ids", []))

    def _category(self, category_id: int) -> Category:
        if category_id not in self.categories:
            raise RowError("unknown_category", f"category {category_id} is not among the {len(self.categories)} of the file")
        return self.categories[category_id]
