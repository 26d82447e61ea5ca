"""What COCO and LVIS have in common: an instances file, a folder of photos, and referring questions about the marked instances."""

import random
import re
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pixellm.data.schema import Region, RejectedRow, Row
from pixellm.data.sources.agreement import AnnotationForm
from pixellm.data.sources.coco_files import (
    CocoCategory,
    CocoFile,
    CocoImage,
    Marked,
    draft_photos,
    read_payload,
    to_category_id,
    to_category_ids,
    to_flag,
    without_shared_box,
)
from pixellm.data.sources.frame import PhotoFrame
from pixellm.data.sources.json_files import read_json
from pixellm.data.sources.layout import find_parts
from pixellm.data.sources.photos import PhotoFolder
from pixellm.data.sources.plan import PhotoRecord, PlanDraft, Source, SourcePlan
from pixellm.data.sources.referring import Category, ReferringOptions, build_referring
from pixellm.data.sources.vocabulary import Vocabulary, build_vocabulary
from pixellm.errors import ConfigError, RowError
from pixellm.uris import Uri

MAX_ABSENT_PER_PHOTO = 32


class InstancesSource(Source, ReferringOptions, AnnotationForm):
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
        marked = draft_photos(file, draft)
        draft.notes += [f"ignored: {each}" for each in file.odd_fields()]
        vocabulary = build_vocabulary(file.categories, self.build_categories(file.categories))
        deniable = self._deniable(vocabulary, marked, draft)
        builder = InstancesBuilder(self, split, vocabulary, deniable, file.license_names(), marked.shared_boxes)
        return draft.finish(builder, f"sha256:{sha256}")

    def _deniable(self, vocabulary: Vocabulary, marked: Marked, draft: PlanDraft) -> frozenset[Category]:
        """Categories that a photo may be said not to show: all of a federated set, which says so itself, else those with an annotation.

        A category without one was perhaps never looked for, and an annotation without a photo may belong to any: then there are none.
        """
        if marked.num_unplaced:
            draft.notes.append(f"{marked.num_unplaced} annotations belong to no photo of the file, and may belong to any: no question is "
                               "about something that is absent")
            return frozenset()
        known = vocabulary.by_id
        return frozenset(known.values() if self.is_federated else (known[each] for each in marked.category_ids & known.keys()))

    def _split_of_name(self) -> str:
        found = re.search(r"train|val|test", self.annotations.rstrip("/").rpartition("/")[2])
        if not found:
            raise ConfigError(f"the name of annotations={self.annotations} says no split; give split=train or split=val")
        return found.group()


@dataclass(frozen=True)
class InstancesBuilder:
    """One region per annotation; crowd regions are `ignore`. Questions are about categories of which every instance is marked.

    `deniable` are the categories that may be asked for where a photo does not show them.
    """

    source: InstancesSource
    split: str
    vocabulary: Vocabulary
    deniable: frozenset[Category]
    licenses: Mapping[str, str]
    shared_boxes: frozenset[str] = frozenset()

    def build(self, record: PhotoRecord, photo: bytes) -> Iterator[Row | RejectedRow]:
        """See RowBuilder. Raises RowError `no_usable_annotation`, `nothing_to_ask` and those of PhotoFrame."""
        content = read_payload(record.payload)
        image, dataset = content.image, self.source.dataset
        frame = PhotoFrame(photo, (image.height, image.width), self.source)
        regions: list[Region] = []
        marked: dict[Category, list[int]] = defaultdict(list)
        seen: set[Category] = set()
        set_aside: set[Category | None] = set()
        annotations = content.annotations
        for annotation in annotations:
            category = None
            try:
                category = self._category(annotation.get("category_id"))
                is_crowd = to_flag(annotation.get("iscrowd"))
                region = frame.region(without_shared_box(annotation, self.shared_boxes), category.name, ignore=is_crowd)
            except RowError as error:
                set_aside.add(category)
                yield RejectedRow(record.image_id, dataset, error.reason, error.detail, annotation_id=str(annotation.get("id")))
                continue
            seen.add(category)
            if not is_crowd:
                marked[category].append(len(regions))
            regions.append(region)
        if annotations and not regions:
            raise RowError("no_usable_annotation", f"all of its {len(annotations)} annotations were set aside")
        if None in set_aside:
            raise RowError("nothing_to_ask", "an annotation without a known category was set aside: no category is known to be complete")
        if not record.is_complete:
            raise RowError("nothing_to_ask", "another image of the same file was set aside: no category is known to be complete")
        complete = self._complete(marked, seen, {each for each in set_aside if each}, image)
        absent = set() if set_aside else self._absent(image, seen)
        rng = random.Random(repr((self.source.seed, dataset, image.id)))
        by_name = sorted(absent, key=lambda category: category.name)
        conversations = build_referring(
            regions, {category: marked[category] for category in complete}, rng.sample(by_name, min(MAX_ABSENT_PER_PHOTO, len(by_name))),
            self.source, rng,
        )
        if not conversations:
            crowds = "each of its annotations is a crowd (iscrowd), whose mask is only ignored; " if regions and not marked else ""
            raise RowError("nothing_to_ask", f"{crowds}no category is marked exhaustively, and none is known to be absent")
        height, width = frame.size_hw
        yield Row(image_id=record.image_id, source=dataset, split=self.split, image=photo, height=height, width=width,
                  regions=regions, conversations=conversations, license=self.licenses.get(str(image.license)),
                  url=image.url)

    def _complete(self, marked: Iterable[Category], seen: set[Category], set_aside: set[Category], image: CocoImage) -> set[Category]:
        """Categories of which each instance is marked, under no other name: a trout beside the fish is a fish, too."""
        unsure = set_aside | self._incomplete(image)
        return {each for each in marked if each not in unsure and not (self.vocabulary.related[each] - {each}) & (seen | set_aside)}

    def _absent(self, image: CocoImage, seen: set[Category]) -> set[Category]:
        """Categories that the photo does not show by the file's own word, and that nothing in it may be of."""
        denied = self._named(image.neg_category_ids) if self.source.is_federated else self.deniable
        return set(denied & self.deniable) - self.vocabulary.related_to(seen | self._incomplete(image))

    def _incomplete(self, image: CocoImage) -> frozenset[Category]:
        """Categories of which the photo has more than is marked; all of them where the file's list of them is not one."""
        if not self.source.is_federated:
            return frozenset()
        is_list = to_category_ids(image.not_exhaustive_category_ids) is not None
        return self._named(image.not_exhaustive_category_ids) if is_list else frozenset(self.vocabulary.related)

    def _named(self, category_ids: Any) -> frozenset[Category]:
        known = self.vocabulary.by_id
        return frozenset(known[each] for each in to_category_ids(category_ids) or () if each in known)

    def _category(self, category_id: Any) -> Category:
        number = to_category_id(category_id)
        if number not in self.vocabulary.by_id:
            raise RowError("unknown_category", f"category {number} is not among the {len(self.vocabulary.by_id)} of the file")
        return self.vocabulary.by_id[number]
