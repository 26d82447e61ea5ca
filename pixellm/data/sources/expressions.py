"""What the refCOCO family has in common: expressions that refer to annotations of an instances file, gathered by photo.

The format is that of the authors' own reader (github.com/lichengunc/refer, `refer.py`) and of gRefCOCO's (`grefer.py`): a list of
references, each with its photo, the annotation or annotations it means, and the sentences that people wrote for it.
"""

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec

from pixellm.data.schema import SEG, Conversation, Region, RejectedRow, Row
from pixellm.data.sources.agreement import AnnotationForm
from pixellm.data.sources.coco_files import CocoFile, CocoImage, to_category_id
from pixellm.data.sources.frame import PhotoFrame
from pixellm.data.sources.json_files import read_json, to_plain
from pixellm.data.sources.photos import PhotoFolder
from pixellm.data.sources.plain_pickle import load_plain_pickle
from pixellm.data.sources.plan import PhotoRecord, PlanDraft, Source, SourcePlan
from pixellm.errors import ConfigError, RowError
from pixellm.storage import read_bytes

Split = Literal["train", "val", "test", "testA", "testB", "testC"]
COCO_PHOTO_FOLDERS = ("images/mscoco/images/train2014", "images/train2014")  # as `refer` and as gRefCOCO's baseline have it
NO_TARGET = -1  # the annotation id by which gRefCOCO says that nothing in the photo is meant

EntryT = TypeVar("EntryT", CocoImage, "_Annotation")


@dataclass(frozen=True)
class Asked:
    """An expression and the indices of the regions that it means, from left to right; none where nothing in the photo is meant."""

    name: str
    targets: Sequence[int]


@dataclass(frozen=True)
class ExpressionsFiles:
    """URIs: `refs` is the list of references, a pickle (`.p`) or JSON; `instances` is COCO's form; `photos` a folder."""

    refs: str
    instances: str
    photos: str


@dataclass(frozen=True)
class ExpressionsBuilder:
    """One region per annotation that an expression means. `ask` makes the conversations of a photo out of its expressions."""

    source: str
    config: "ExpressionsSource"
    categories: Mapping[int, str]
    ask: Callable[[Sequence[Asked], random.Random], list[Conversation]]

    def build(self, record: PhotoRecord, photo: bytes) -> Iterator[Row | RejectedRow]:
        """See RowBuilder. An expression goes with any of its annotations.

        Raises RowError `no_usable_annotation`, `nothing_to_ask` and those of PhotoFrame.
        """
        content = msgspec.json.decode(record.payload, type=_Photo)
        frame = PhotoFrame(photo, (content.height, content.width), self.config)
        regions: list[Region] = []
        index_of: dict[int, int] = {}
        for raw in content.annotations:
            annotation = to_plain(raw)
            try:
                region = frame.region(annotation, self._category(annotation.get("category_id")))
            except RowError as error:
                yield RejectedRow(record.image_id, self.source, error.reason, error.detail, annotation_id=str(annotation["id"]))
                continue
            index_of[annotation["id"]] = len(regions)
            regions.append(region)
        asked = [Asked(each.name, sorted((index_of[number] for number in each.annotation_ids), key=lambda i: (regions[i]["box_xywh"], i)))
                 for each in content.expressions if index_of.keys() >= set(each.annotation_ids)]
        if not asked:
            raise RowError("no_usable_annotation", f"each of its {len(content.expressions)} expressions means one that was set aside")
        conversations = self.ask(asked, random.Random(repr((self.config.seed, self.source, record.image_id))))
        if not conversations:
            raise RowError("nothing_to_ask", f"no question can be made of its {len(asked)} expressions")
        height, width = frame.size_hw
        yield Row(image_id=record.image_id, source=self.source, split=self.config.split, image=photo, height=height, width=width,
                  regions=regions, conversations=conversations, license=content.license, url=content.url)

    def _category(self, category_id: Any) -> str:
        category_id = to_category_id(category_id)
        if category_id not in self.categories:
            raise RowError("unknown_category", f"category {category_id} is not among the {len(self.categories)} of the file")
        return self.categories[category_id]


class ExpressionsSource(Source, AnnotationForm):
    """Base of all sources of expressions."""

    split: Split


def plan_expressions(
    config: ExpressionsSource, source: str, files: ExpressionsFiles, ask: Callable[[Sequence[Asked], random.Random], list[Conversation]]
) -> SourcePlan:
    """One record per photo of the split of `config`: its expressions, and the annotations they mean as the text that stands in the file.

    Set aside: a reference (`annotation_invalid`; `unknown_annotation`, also for one of another photo), one of its sentences (`empty_text`,
    `seg_in_question`), a photo (`unknown_image`, `duplicate_id`, those of PhotoFolder).
    Raises ConfigError and StorageError for files that are not what they should be, and for a split without expressions.
    """
    entries, refs_sha256 = _read_refs(files.refs)
    instances, instances_sha256 = read_json(files.instances, CocoFile)
    draft = PlanDraft(source, config.split, PhotoFolder(files.photos), counted="questions")
    refs = _refs_of_split(entries, config.split, files.refs, draft)
    by_image: dict[int, list[_Ref]] = defaultdict(list)
    for ref in refs:
        by_image[ref.image_id].append(ref)
    annotations = _entries_by_id(instances.annotations, _Annotation, {number for ref in refs for number in ref.annotation_ids})
    images = _entries_by_id(instances.images, CocoImage, by_image.keys())
    licenses = instances.license_names()
    for image_id, image_refs in by_image.items():
        if image_id not in images or min(images[image_id].entry.height, images[image_id].entry.width) <= 0:
            draft.reject(image_id, RowError("unknown_image", f"image {image_id} is not in the file, or has no height and width"))
            continue
        image = images[image_id].entry
        expressions: list[_Expression] = []
        for ref in image_refs:
            wrong = [each for each in ref.annotation_ids if each not in annotations or annotations[each].entry.image_id != image_id]
            if wrong:
                draft.reject(image_id, RowError("unknown_annotation", f"reference {ref.ref_id} means annotations {wrong}, which the photo "
                                                "does not have"), annotation_id=str(ref.ref_id))
                continue
            expressions += _expressions_of(ref, draft)
        used = dict.fromkeys(number for each in expressions for number in each.annotation_ids)
        if expressions:
            photo = _Photo(image.height, image.width, licenses.get(str(image.license)), image.url,
                           [annotations[number].raw for number in used], expressions)
            draft.add(str(image_id), image.names, msgspec.json.encode(photo))
    builder = ExpressionsBuilder(source, config, {each.id: each.name for each in instances.categories}, ask)
    return draft.finish(builder, "sha256:" + hashlib.sha256((refs_sha256 + instances_sha256).encode()).hexdigest())


class _Sentence(msgspec.Struct):
    sent: str
    sent_id: Any = None


class _Ref(msgspec.Struct):
    ref_id: int
    image_id: int
    ann_id: int | Annotated[list[int], msgspec.Meta(min_length=1)]
    split: str
    sentences: list[_Sentence]

    @property
    def annotation_ids(self) -> list[int]:
        if isinstance(self.ann_id, int):
            return [self.ann_id]
        return [] if self.ann_id == [NO_TARGET] else list(dict.fromkeys(self.ann_id))


class _Annotation(msgspec.Struct):
    id: int
    image_id: int


class _Expression(msgspec.Struct):
    name: str
    annotation_ids: list[int]


class _Photo(msgspec.Struct):
    """The payload of a record. `height` and `width` are those that the annotations are for."""

    height: int
    width: int
    license: str | None
    url: str | None
    annotations: list[msgspec.Raw]
    expressions: list[_Expression]


@dataclass(frozen=True)
class _Found(Generic[EntryT]):
    entry: EntryT
    raw: msgspec.Raw


def _read_refs(uri: str) -> tuple[list[Any], str]:
    """The references as they stand in the file, and its sha256."""
    if not uri.endswith(".p"):
        return read_json(uri, list[Any])
    data = read_bytes(uri)
    entries = load_plain_pickle(data, uri)
    if not isinstance(entries, list):
        raise ConfigError(f"{uri} holds a {type(entries).__name__}, expected the list of references")
    return entries, hashlib.sha256(data).hexdigest()


def _refs_of_split(entries: Iterable[Any], split: Split, uri: str, draft: PlanDraft) -> list[_Ref]:
    refs, num_by_split = [], Counter[str]()
    for entry in entries:
        try:
            ref = msgspec.convert(entry, _Ref, strict=False)
        except msgspec.ValidationError as error:
            fields = entry if isinstance(entry, dict) else {}
            draft.reject(fields.get("image_id"), RowError("annotation_invalid", str(error)), annotation_id=str(fields.get("ref_id")))
            continue
        num_by_split[ref.split] += 1
        if _is_in_split(ref.split, split):
            refs.append(ref)
    if not refs:
        known = ", ".join(f"{name} ({count})" for name, count in num_by_split.items()) or "nothing"
        raise ConfigError(f"{uri} has no reference for split={split}; it has {known}")
    return refs


def _is_in_split(ref_split: str, split: Split) -> bool:
    """As `refer` reads them: refCLEF has references of "testAB", which are in testA and in testB; "test" is all of them."""
    if split.startswith("test"):
        return ref_split.startswith("test") and split[4:] in ref_split[4:]
    return ref_split == split


def _expressions_of(ref: _Ref, draft: PlanDraft) -> Iterator[_Expression]:
    for sentence in ref.sentences:
        name = re.sub(r"^(the|an?)\s+(?=\S)", "", " ".join(sentence.sent.split()).strip(" .,;:?!"), flags=re.IGNORECASE)
        if not name:
            error = RowError("empty_text", f"a sentence of reference {ref.ref_id} has no text")
        elif SEG in name:
            error = RowError("seg_in_question", f"{SEG} stands for a mask in an answer, found in {sentence.sent!r}")
        else:
            yield _Expression(name, ref.annotation_ids)
            continue
        draft.reject(ref.image_id, error, annotation_id=f"{ref.ref_id}/{sentence.sent_id}")


def _entries_by_id(raws: Iterable[msgspec.Raw], kind: type[EntryT], ids: Container[int]) -> dict[int, _Found[EntryT]]:
    """Those of `ids`; an entry that is not what `kind` says is as good as missing."""
    found: dict[int, _Found[EntryT]] = {}
    for raw in raws:
        with suppress(msgspec.DecodeError):
            entry = msgspec.json.decode(raw, type=kind, strict=False)
            number = int(entry.id) if str(entry.id).isdecimal() else -1
            if number in ids:
                found[number] = _Found(entry, raw)
    return found
