"""What datasets of label maps have in common: a folder of photos and a folder of PNGs that hold the number of a class for each pixel."""

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pixellm.data.schema import RejectedRow, Row
from pixellm.data.sources.frame import PhotoFrame
from pixellm.data.sources.photos import PhotoFolder, path_stem
from pixellm.data.sources.plan import PhotoRecord, PlanDraft, SourcePlan
from pixellm.data.sources.semantic import SemanticSource, build_semantic
from pixellm.errors import ConfigError, RowError
from pixellm.masks import RLE, label_map_to_rles, union_rles
from pixellm.storage import list_folder, read_bytes

ONE_CHANNEL_MODES = ("L", "P", "I;16")  # Pillow's: grey of 8 bits, index into a palette, grey of 16 bits


@dataclass(frozen=True)
class LabelMapBuilder:
    """One region per class of the map, and one `ignore` region of all labels that `names` gives None."""

    source: SemanticSource
    names: Mapping[int, str | None]

    def build(self, record: PhotoRecord, photo: bytes) -> Iterator[Row | RejectedRow]:
        """See RowBuilder. Raises RowError `unknown_label`, and those of `read_label_map`, PhotoFrame and `build_semantic`."""
        labels = read_label_map(read_bytes(json.loads(record.payload)["labels"]))
        frame = PhotoFrame(photo, labels.shape)
        rles: dict[str | None, list[RLE]] = defaultdict(list)
        for label, rle in label_map_to_rles(labels).items():
            if label not in self.names:
                raise RowError("unknown_label", f"the map holds {label}, which is none of the dataset's {len(self.names)} labels")
            rles[self.names[label]].append(rle)
        regions = [frame.region({"segmentation": union_rles(parts, labels.shape)}, name or "unlabeled", ignore=name is None)
                   for name, parts in rles.items()]
        conversations = build_semantic(regions, self.source, record.image_id)
        height, width = frame.size_hw
        yield Row(image_id=record.image_id, source=self.source.dataset, split=self.source.split, image=photo, height=height, width=width,
                  regions=regions, conversations=conversations, license=None, url=None)


def plan_label_maps(
    source: SemanticSource, photos_uri: str, maps_uri: str, names: Mapping[int, str | None], names_file: bytes
) -> SourcePlan:
    """Photos and maps of the same name, which become rows; a photo without a map and a map without a photo are set aside.

    `names` are the classes by their label, None where the label says that a pixel has no class; `names_file` is where they stand.
    """
    listed = list_folder(maps_uri)
    sizes = {path: size for path, size in listed.sizes.items() if path.lower().endswith(".png")}
    if not sizes:
        raise ConfigError(f"{source.dataset}: {maps_uri} has no label map (.png); check the path")
    photos = PhotoFolder(photos_uri)
    draft = PlanDraft(source.dataset, source.split, photos)
    unlabeled = dict.fromkeys(photos.paths)
    for path in sizes:
        stem = path_stem(path)
        try:
            photo = photos.path_of_stem(stem)
        except RowError as error:
            draft.reject(stem, error)
            continue
        unlabeled.pop(photo or "", None)
        draft.add(stem, {"file_name": photo or f"{stem}.jpg"}, {"labels": listed.uri_of(path)})
    for photo in unlabeled:
        draft.reject(path_stem(photo), RowError("labels_missing", f"no {path_stem(photo)}.png below {maps_uri}"))
    listing = "".join(f"{path} {size}\n" for path, size in sizes.items())
    sha256 = hashlib.sha256(names_file + listing.encode()).hexdigest()
    return draft.finish(LabelMapBuilder(source, names), f"sha256:{sha256}")


def read_label_map(data: bytes) -> np.ndarray:
    """A PNG as integers (H, W), just as they are stored: a palette or a colour profile is not applied.

    Three equal channels count as one. Raises RowError `labels_unreadable` (not a PNG, cut off), `labels_format` (a picture in colour).
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            mode, labels = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RowError("labels_unreadable", f"not a PNG: {error}") from None
    if mode == "RGB" and (labels == labels[..., :1]).all():
        return labels[..., 0]
    if mode not in ONE_CHANNEL_MODES:
        raise RowError("labels_format", f"a label map has one channel of 8 or 16 bits, found mode {mode}")
    return labels
